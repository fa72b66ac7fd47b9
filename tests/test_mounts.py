"""What a bucket is good for that is mounted by s3fs, and what it is refused for: a real mount over a real S3 server."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from served import Server, Weed, binary
from test_seed import wait_for_published

pytestmark = pytest.mark.skipif(not (shutil.which("s3fs") and Path("/dev/fuse").exists()), reason="s3fs or /dev/fuse is missing")

ROWS = """
CREATE TABLE t AS SELECT i AS a, 'row ' || i AS b, CASE WHEN i % 7 > 0 THEN i / 4 END AS c, DATE '2026-01-01' + (i % 365)::INTEGER AS d
FROM range(100000) r(i)
"""
# In this order and form the server and DuckDB itself give the same.
DIGEST = "SELECT count(*), count(c), sum(a)::BIGINT, sum(c), max(b), max(d)::VARCHAR FROM t"

# Opens a database, says so, and reads it when it is told to.
LATER = "import duckdb, sys; con = duckdb.connect(sys.argv[1], read_only=True); print(flush=True); input(); print(con.execute('FROM t').fetchall())"


@pytest.fixture
def bucket(weed, tmp_path):
    """Mounts `sm-default-analytics` as a directory, each call as another machine would."""
    keys = tmp_path / "keys"
    keys.write_text(f"{Weed.ACCESS_KEY}:{Weed.SECRET_KEY}")
    keys.chmod(0o600)
    mounted = []

    def mount():
        place, log = tmp_path / f"mount{len(mounted)}", tmp_path / f"s3fs{len(mounted)}.log"
        place.mkdir()
        options = ["-o", f"url=http://{weed.address}", "-o", "use_path_request_style", "-o", f"passwd_file={keys}", "-f"]
        with open(log, "wb") as sink:
            process = subprocess.Popen(["s3fs", "sm-default-analytics", place, *options], stdout=sink, stderr=sink)
        mounted.append((place, process))
        deadline = time.monotonic() + 30
        while not os.path.ismount(place):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        return place

    yield mount
    for place, process in mounted:
        subprocess.run(["fusermount", "-u", "-z", place], check=process.poll() is None)
        process.wait(timeout=30)


@pytest.fixture
def mount(bucket):
    return bucket()


@pytest.fixture
def serve(weed, tmp_path):
    """A node on the S3 server, its disk a local one."""
    started = []

    def serve(**environment):
        server = Server(tmp_path / "node", {**weed.environment(), **environment}, ["--store", "s3"])
        server.root.mkdir()
        started.append(server)
        return server.start()

    yield serve
    for server in started:
        server.stop()


def digest(path):
    """By DuckDB itself."""
    with duckdb.connect(str(path), read_only=True) as con:
        return list(con.execute(DIGEST).fetchone())


def test_archives_are_read_through_the_mount(serve, mount):
    """S4: archives are whole objects that are written once, so any DuckDB reads them as files."""
    server = serve()
    server.query(ROWS)
    command = [binary(), "archive", f"tarn://{server.address}/default/dev"]
    subprocess.run(command, check=True, capture_output=True, env={"PATH": os.environ["PATH"], "TARN_TOKEN": server.token})
    (archive,) = (mount / "duckdb" / "dev" / "archives").glob("*.db")
    assert [digest(archive)] == server.rows(DIGEST)
    # What a live mart has in the bucket is no database, and nothing there looks like one.
    assert [path for path in (mount / "duckdb").rglob("*.db")] == [archive]


def test_a_published_file_may_be_copied_to_the_mount(serve, weed, bucket, tmp_path):
    here, elsewhere = bucket(), bucket()
    server = serve()
    server.query(ROWS)
    published = wait_for_published(server, "SELECT count(*) FROM t", lambda count: count == 100_000)
    (here / "handed-out").mkdir()
    shutil.copy(published, here / "handed-out" / "dev-1.db")
    (before,) = server.rows(DIGEST)
    assert digest(here / "handed-out" / "dev-1.db") == digest(elsewhere / "handed-out" / "dev-1.db") == before
    # For machines without the mount it is an object as any other.
    weed.client().download_file("sm-default-analytics", "handed-out/dev-1.db", str(tmp_path / "copy.db"))
    assert (tmp_path / "copy.db").read_bytes() == published.read_bytes()
    # Under another name the next one disturbs nobody who reads the first.
    with duckdb.connect(str(elsewhere / "handed-out" / "dev-1.db"), read_only=True) as reader:
        server.query("INSERT INTO t SELECT a + 100000, b, c, d FROM t")
        wait_for_published(server, "SELECT count(*) FROM t", lambda count: count == 200_000)
        shutil.copy(published, here / "handed-out" / "dev-2.db")
        assert list(reader.execute(DIGEST).fetchone()) == before
    assert [digest(elsewhere / "handed-out" / "dev-2.db")] == server.rows(DIGEST)


def test_the_server_may_publish_to_the_mount(serve, weed, mount, tmp_path):
    (mount / "published").mkdir()
    server = serve(TARN_PUBLISH_DIR=str(mount / "published"))
    server.query("CREATE TABLE t AS SELECT 42 AS a")
    server.state = mount / "published"  # where the file is looked for
    published = wait_for_published(server, "SELECT count(*) FROM t", lambda count: count == 1)
    with subprocess.Popen([sys.executable, "-c", LATER, published], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout.readline() == "\n"
        server.query("INSERT INTO t VALUES (43)")
        wait_for_published(server, "SELECT count(*) FROM t", lambda count: count == 2)
        told, _ = reader.communicate("now\n", timeout=30)
    assert told == "[(42,)]\n", "who has it open on this mount keeps what he opened"
    assert [path.name for path in (mount / "published").iterdir()] == ["duckdb-dev.db"]
    weed.client().download_file("sm-default-analytics", "published/duckdb-dev.db", str(tmp_path / "copy.db"))
    with duckdb.connect(str(tmp_path / "copy.db"), read_only=True) as con:
        assert con.execute("FROM t ORDER BY a").fetchall() == [(42,), (43,)]


@pytest.mark.parametrize("where", ["--state-dir", "--store"])
def test_a_live_mart_on_the_mount_is_refused_with_the_reason(weed, mount, tmp_path, where):
    places = {"--state-dir": str(tmp_path / "state"), "--store": f"file:{tmp_path}/objects"}
    places[where] = f"file:{mount}/objects" if where == "--store" else f"{mount}/state"
    command = [binary(), "serve", "--listen", "127.0.0.1:0", *(word for pair in places.items() for word in pair)]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 1 and "fuse.s3fs" in done.stderr and "local" in done.stderr, done
    checked = subprocess.run([binary(), "doctor", *command[4:]], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert checked.returncode == 1 and "fuse.s3fs" in checked.stdout + checked.stderr, checked
