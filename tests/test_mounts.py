"""What a bucket is good for that is mounted by s3fs, and what it is refused for: a real mount over a real S3 server."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import duckdb
import pytest

from served import Server, Weed, binary
from test_seed import wait_for_published

pytestmark = pytest.mark.skipif(not (shutil.which("s3fs") and Path("/dev/fuse").exists()), reason="s3fs or /dev/fuse is missing")


@pytest.fixture
def mount(weed, tmp_path):
    """`sm-default-analytics` as a directory."""
    place, keys = tmp_path / "mount", tmp_path / "keys"
    place.mkdir()
    keys.write_text(f"{Weed.ACCESS_KEY}:{Weed.SECRET_KEY}")
    keys.chmod(0o600)
    options = ["-o", f"url=http://{weed.address}", "-o", "use_path_request_style", "-o", f"passwd_file={keys}", "-f"]
    with open(tmp_path / "s3fs.log", "wb") as log:
        process = subprocess.Popen(["s3fs", "sm-default-analytics", place, *options], stdout=log, stderr=log)
    deadline = time.monotonic() + 30
    while not os.path.ismount(place):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "s3fs.log").read_text()
        time.sleep(0.05)
    yield place
    subprocess.run(["fusermount", "-u", "-z", place], check=True)
    process.wait(timeout=30)


@pytest.fixture
def served(weed, tmp_path):
    server = Server(tmp_path / "node", weed.environment(), ["--store", "s3"])
    server.root.mkdir()
    yield server.start()
    server.stop()


def test_archives_are_read_through_the_mount(served, mount):
    """S4: archives are whole objects that are written once, so any DuckDB reads them as files."""
    served.query("CREATE TABLE t AS SELECT range AS a FROM range(100000)")
    with served.request("POST", "/v1/tenants/default/marts/dev/archives", {}):
        pass
    (archive,) = (mount / "duckdb" / "dev" / "archives").glob("*.db")
    with duckdb.connect(str(archive), read_only=True) as con:
        assert con.execute("SELECT count(*), sum(a) FROM t").fetchall() == [(100_000, 100_000 * 99_999 // 2)]


def test_published_files_may_go_to_the_mount(weed, mount, tmp_path):
    (mount / "published").mkdir()
    server = Server(tmp_path / "node", {**weed.environment(), "TARN_PUBLISH_DIR": str(mount / "published")}, ["--store", "s3"])
    server.root.mkdir()
    server.start()
    try:
        server.query("CREATE TABLE t AS SELECT 42 AS a")
        server.state = mount / "published"  # where the file is looked for
        wait_for_published(server, "SELECT count(*) FROM t", lambda count: count == 1)
        server.query("INSERT INTO t VALUES (43)")
        wait_for_published(server, "SELECT count(*) FROM t", lambda count: count == 2)
        assert not list((mount / "published").glob("*.new"))
    finally:
        server.stop()
    # For machines without the mount it is an object as any other.
    weed.client().download_file("sm-default-analytics", "published/duckdb-dev.db", str(tmp_path / "copy.db"))
    with duckdb.connect(str(tmp_path / "copy.db"), read_only=True) as con:
        assert con.execute("FROM t ORDER BY a").fetchall() == [(42,), (43,)]


@pytest.mark.parametrize("where", ["--state-dir", "--store"])
def test_a_live_mart_on_the_mount_is_refused_with_the_reason(mount, tmp_path, where):
    places = {"--state-dir": str(tmp_path / "state"), "--store": f"file:{tmp_path}/objects"}
    places[where] = f"file:{mount}/objects" if where == "--store" else f"{mount}/state"
    command = [binary(), "serve", "--listen", "127.0.0.1:0", *(word for pair in places.items() for word in pair)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and "fuse.s3fs" in done.stderr and "local" in done.stderr, done
    checked = subprocess.run([binary(), "doctor", *command[4:]], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert checked.returncode == 1 and "fuse.s3fs" in checked.stdout + checked.stderr, checked
