"""`make analytics.shell` and `make analytics.reset`, with the server running and without."""

import os
import subprocess

import pytest

from served import ROOT, Server, binary
from test_seed import wait_for_published


@pytest.fixture
def project(tmp_path):
    """The checkout with volumes of its own."""
    for name in ("Makefile", "scripts", "vendor", "Cargo.toml"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def dev(project):
    """A server as `make serve` starts one."""
    server = Server(project, arguments=["--store", f"file:{project}/volumes/objects"])
    server.state = project / "volumes" / "duckdb"
    server.token = None
    server.start()
    server.token = (server.state / "admin-token").read_text().strip()
    yield server
    server.stop()


def make(project, target, answer="", **variables):
    """Of a checkout whose binary is the tested one."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "TARN_CACHE_DIR") if name in os.environ}
    built = project / "target" / "debug"
    built.mkdir(parents=True, exist_ok=True)
    if not (built / "tarn").exists():
        (built / "tarn").symlink_to(binary())
    command = ["make", "--no-print-directory", target, *(f"{name}={value}" for name, value in variables.items())]
    environment = {**kept, "CARGO_TARGET_DIR": str(project / "target")}
    return subprocess.run(command, cwd=project, input=answer, capture_output=True, text=True, env=environment, timeout=120)


def shell(project, sql):
    return make(project, "analytics.shell", ARGS=f"-csv -noheader -c '{sql}'")


def test_before_the_first_server_the_shell_says_what_is_missing(project):
    missing = make(project, "analytics.shell")
    assert missing.returncode != 0 and "`make serve` publishes it" in missing.stderr


def test_the_shell_opens_the_dev_database_and_says_which_state_it_is(project, dev):
    """S2."""
    dev.query("CREATE TABLE t AS SELECT 42 AS a")
    wait_for_published(dev, "SELECT count(*) FROM t", lambda count: count == 1)
    done = shell(project, "FROM t")
    assert done.returncode == 0 and done.stdout.split() == ["42"] and "the server is running" in done.stderr
    refused = shell(project, "DROP TABLE t")
    assert refused.returncode != 0 and "read-only" in refused.stderr
    # The server goes on, and without it the same is there.
    dev.query("INSERT INTO t VALUES (43)")
    wait_for_published(dev, "SELECT count(*) FROM t", lambda count: count == 2)
    dev.stop()
    done = shell(project, "SELECT count(*) FROM t")
    assert done.stdout.split() == ["2"] and "no server is running" in done.stderr


def test_the_dev_mart_is_emptied_after_asking(project, dev):
    """S6."""
    dev.query("CREATE TABLE t AS SELECT 42 AS a")
    dev.create_mart("default/other")
    dev.query("CREATE TABLE kept AS SELECT 1 AS a", mart="default/other")
    kept = make(project, "analytics.reset", "n\n")
    assert kept.returncode != 0 and "left as it is" in kept.stdout
    assert dev.rows("FROM t") == [[42]]
    # On the running server, which goes on.
    done = make(project, "analytics.reset", "y\n")
    assert done.returncode == 0, done.stderr
    assert dev.rows("SELECT count(*) FROM duckdb_tables()") == [[0]]
    assert dev.rows("FROM kept", mart="default/other") == [[1]]
    # And without one.
    dev.query("CREATE TABLE t AS SELECT 43 AS a")
    dev.stop()
    done = make(project, "analytics.reset", FORCE=1)
    assert done.returncode == 0, done.stderr
    dev.start()
    assert dev.rows("SELECT count(*) FROM duckdb_tables()") == [[0]]
    assert dev.rows("FROM kept", mart="default/other") == [[1]]
