"""The image and the stack of docker-compose.yml, by a real Docker daemon."""

import json
import shutil
import time
import uuid

import duckdb
import pytest

import docker
from docker import Docker
from served import ROOT, Server, free_port
from test_seed import wait_for_published

pytestmark = pytest.mark.skipif(docker.why_not() is not None, reason=docker.why_not() or "")
KEYS = {"DUCKDB_ACCESS_KEY_ID": "compose", "DUCKDB_SECRET_ACCESS_KEY": "compose-secret"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    daemon = Docker(tmp_path_factory.mktemp("docker"))
    try:
        daemon.start().make_images()
        yield daemon
    finally:
        daemon.stop()


class Stack(Server):
    """`docker-compose` in a copy of the checkout, seen through the port that it publishes."""

    def __init__(self, root, daemon, *profiles, **variables):
        super().__init__(root)
        self.daemon = daemon
        self.profiles = [word for profile in profiles for word in ("--profile", profile)]
        self.project = f"t{uuid.uuid4().hex[:8]}"
        self.state = root / "volumes" / "duckdb"
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.rsplit(":", 1)[1]
        self.variables = {"TARN_PORT": port, "TARN_ADMIN_TOKEN": self.token, "COMPOSE_PROJECT_NAME": self.project, **variables}
        shutil.copy(ROOT / "docker-compose.yml", root)
        shutil.copytree(ROOT / "monitoring", root / "monitoring")

    def compose(self, *words, check=True):
        return self.daemon.run("docker-compose", *self.profiles, *words, cwd=self.root, check=check, **self.variables)

    def up(self, *services):
        self.compose("up", "--detach", *services)
        self.await_health()

    def await_health(self):
        deadline = time.monotonic() + 120
        while (state := self.inspect()["State"]).get("Health", {}).get("Status") != "healthy":
            assert time.monotonic() < deadline, f"{json.dumps(state)}\n{self.compose('logs', '--tail', '50', check=False).stdout}"
            time.sleep(0.2)

    def inspect(self):
        found = self.compose("ps", "--quiet", "duckdb").stdout.split()
        return json.loads(self.daemon.run("docker", "inspect", found[0]).stdout)[0]

    def inside(self, *command, check=True):
        return self.daemon.run("docker", "exec", self.inspect()["Id"], *command, check=check)

    def down(self):
        self.compose("down", "--volumes", "--timeout", "20", check=False)


@pytest.fixture
def stack(daemon, tmp_path):
    started = []

    def make(*profiles, **variables):
        started.append(Stack(tmp_path, daemon, *profiles, **variables))
        return started[-1]

    yield make
    for one in started:
        one.down()


def test_the_image_is_small_and_nobodys_root(daemon):
    image = json.loads(daemon.run("docker", "image", "inspect", "tarn:latest").stdout)[0]
    assert image["Config"]["User"] == "10001:10001" and image["Config"]["Healthcheck"]["Test"] == ["CMD", "tarn", "health"]
    base = json.loads(daemon.run("docker", "image", "inspect", docker.BASE).stdout)[0]
    # The binary, DuckDB and httpfs; what the debug build adds is more than a release would.
    assert image["Size"] - base["Size"] < 250e6
    # Nothing is fetched while it is made.
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert not any(word in line for line in lines for word in ("apt", "curl", "wget", "http://", "https://") if not line.startswith("#"))
    files = daemon.run("docker", "run", "--rm", "--entrypoint", "find", "tarn:latest", "/opt/tarn", "-type", "f").stdout.split()
    assert sorted(files) == ["/opt/tarn/ext/httpfs.duckdb_extension", "/opt/tarn/libduckdb.so", "/opt/tarn/tarn"]


@pytest.mark.parametrize("profiles", [[], ["s3"], ["pipelines"], ["monitoring"], ["s3", "pipelines", "monitoring"]])
def test_the_file_is_one_for_every_profile(stack, profiles):
    one = stack(*profiles)
    services = set(one.compose("config", "--services").stdout.split())
    assert {"duckdb", "s3", "postgres", "temporal", "prometheus", "grafana"} <= services


def test_the_stack_serves_and_publishes_into_the_shared_volume(stack):
    """S1: the service `duckdb` and the volume `./volumes/duckdb`, at the first `up` in a fresh checkout."""
    one = stack()
    one.up()
    one.query("CREATE TABLE t AS SELECT 42 AS a")
    published = wait_for_published(one, "SELECT count(*) FROM t", lambda count: count == 1)
    assert published == one.root / "volumes" / "duckdb" / "duckdb-dev.db"
    with duckdb.connect(str(published), read_only=True) as con:
        assert con.execute("FROM t").fetchall() == [(42,)]
    assert published.stat().st_mode & 0o004 and published.parent.stat().st_mode & 0o005 == 0o005, "anybody on the machine reads it"
    assert one.inside("id", "-u").stdout.strip() == "10001"
    assert one.inside("touch", "/opt/tarn/x", check=False).returncode != 0, "the root is read-only"
    logs = one.compose("logs", "duckdb").stdout
    assert "all walls around engines stand" in logs or "does not stand here" in logs
    # Docker's own profile is what would keep these from standing.
    assert not any(f"the wall `{wall}`" in logs for wall in ("seccomp", "privileges", "core_dumps", "landlock")), logs
    with one.request("GET", "/readyz") as answer:
        assert answer.status == 200


def test_a_killed_container_and_a_lost_volume_lose_nothing_with_the_s3_profile(stack):
    one = stack("s3", TARN_STORE="s3", **KEYS)
    one.up()
    one.query("CREATE TABLE t AS SELECT range AS a FROM range(1000)")
    for step in range(20):
        one.query(f"INSERT INTO t VALUES ({step})")
    listed = one.compose("exec", "-T", "s3", "sh", "-c", "echo 's3.bucket.versioning -name sm-default-analytics' | weed shell -master=s3:9333 -filer=s3:8888")
    assert "Enabled" in listed.stdout
    container = one.inspect()["Id"]
    one.daemon.run("docker", "kill", container)
    one.daemon.run("docker", "rm", container)
    shutil.rmtree(one.root / "volumes" / "duckdb")
    one.up()
    assert one.rows("SELECT count(*), sum(a)::BIGINT FROM t") == [[1020, 999 * 500 + 190]]
    # And without a kill: a stop in order ships what is left.
    one.query("INSERT INTO t VALUES (1)", durability="local")
    one.compose("rm", "--stop", "--force", "duckdb")
    shutil.rmtree(one.root / "volumes" / "duckdb")
    one.up()
    assert one.rows("SELECT count(*) FROM t") == [[1021]]
