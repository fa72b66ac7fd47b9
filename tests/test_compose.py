"""The image and the stack of docker-compose.yml, by a real Docker daemon."""

import contextlib
import http.client
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
import uuid

import duckdb
import pytest

import docker
from docker import Docker
from served import ROOT, Refused, Server, Weed, binary, free_port
from test_seed import wait_for_published

pytestmark = pytest.mark.skipif(docker.why_not() is not None, reason=docker.why_not() or "")
KEYS = {"DUCKDB_ACCESS_KEY_ID": Weed.ACCESS_KEY, "DUCKDB_SECRET_ACCESS_KEY": Weed.SECRET_KEY}
WITH_S3 = {"TARN_STORE": "s3", **KEYS}


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
        self.state, self.objects = root / "volumes" / "duckdb", root / "volumes" / "objects"
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        project = f"t{uuid.uuid4().hex[:8]}"
        self.variables = {"TARN_PORT": str(port), "TARN_ADMIN_TOKEN": self.token, "COMPOSE_PROJECT_NAME": project, **variables}
        shutil.copy(ROOT / "docker-compose.yml", root)
        shutil.copytree(ROOT / "monitoring", root / "monitoring")

    def compose(self, *words, check=True):
        return self.daemon.run("docker-compose", *self.profiles, *words, cwd=self.root, check=check, **self.variables)

    def up(self, *services):
        self.compose("up", "--detach", *services)
        self.daemon.await_health(self.container())

    def container(self, service="duckdb"):
        return self.compose("ps", "--quiet", service).stdout.strip()

    def inside(self, *command, check=True):
        return self.daemon.run("docker", "exec", self.container(), *command, check=check)

    def s3(self):
        """Its S3 server, by the address that it has on the stack's network."""
        (network,) = self.daemon.inspect(self.container("s3"))["NetworkSettings"]["Networks"].values()
        weed = Weed(self.root)
        weed.address = f"{network['IPAddress']}:8333"
        return weed

    def down(self):
        self.compose("kill", check=False)
        self.compose("down", "--volumes", check=False)


@pytest.fixture
def stack(daemon, tmp_path):
    started = []

    def make(*profiles, **variables):
        started.append(Stack(tmp_path, daemon, *profiles, **variables))
        return started[-1]

    yield make
    for one in started:
        one.down()


def test_the_image_is_small_nobodys_root_and_made_without_a_network(daemon):
    image, base = (daemon.inspect(name) for name in ("tarn:latest", docker.BASE))
    assert image["Config"]["User"] == "10001:10001"
    # The binary, DuckDB and httpfs; what the debug build adds is more than a release would.
    assert image["Size"] - base["Size"] < 250e6
    files = daemon.run("docker", "run", "--rm", "--entrypoint", "find", "tarn:latest", "/opt/tarn", "-type", "f").stdout.split()
    assert sorted(files) == ["/opt/tarn/ext/httpfs.duckdb_extension", "/opt/tarn/libduckdb.so", "/opt/tarn/tarn", "/opt/tarn/tarn-worker"]
    schema = daemon.run("docker", "run", "--rm", "--read-only", "--entrypoint", "tarn-worker", "tarn:latest", "schema").stdout
    assert "transform" in schema
    # This daemon gives none to what it builds: whatever was fetched would have failed.
    networks = daemon.run("docker", "network", "ls", "--format", "{{.Name}}").stdout.split()
    assert "bridge" not in networks


def test_the_image_alone_becomes_healthy_and_keeps_its_store_outside_of_the_container(daemon):
    container = daemon.run("docker", "run", "--detach", "--env", "TARN_INSECURE=true", "tarn:latest").stdout.strip()
    daemon.await_health(container)
    mounts = {mount["Destination"] for mount in daemon.inspect(container)["Mounts"]}
    assert mounts == {"/var/lib/tarn/duckdb", "/var/lib/tarn/objects"}
    written = daemon.run("docker", "exec", container, "find", "/var/lib/tarn/objects/sm-default-analytics", "-type", "f").stdout
    assert written, "the dev mart's first objects"
    daemon.run("docker", "rm", "--force", "--volumes", container)


@pytest.mark.parametrize("profiles", [[], ["s3"], ["pipelines"], ["monitoring"], ["s3", "pipelines", "monitoring"]])
def test_the_file_is_one_for_every_profile(stack, profiles):
    one = stack(*profiles)
    services = set(one.compose("config", "--services").stdout.split())
    assert {"duckdb", "s3", "postgres", "temporal", "prometheus", "grafana"} <= services
    for line in one.compose("config").stdout.splitlines():
        # Every file of the checkout that it mounts is there; Docker would make a directory in its place.
        if f"{one.root}/monitoring" in line:
            path = line.split("- ")[-1].split(":")[0]
            assert (ROOT / path.removeprefix(f"{one.root}/")).exists(), line


def test_the_stack_serves_and_publishes_into_the_shared_volume(stack):
    """S1: the service `duckdb` and the volume `./volumes/duckdb`, at the first `up` in a fresh checkout."""
    one = stack()
    one.up("duckdb")
    one.query("CREATE TABLE t AS SELECT 42 AS a")
    published = wait_for_published(one, "SELECT count(*) FROM t", lambda count: count == 1)
    assert published == one.root / "volumes" / "duckdb" / "duckdb-dev.db"
    with duckdb.connect(str(published), read_only=True) as con:
        assert con.execute("FROM t").fetchall() == [(42,)]
    assert published.stat().st_mode & 0o004 and published.parent.stat().st_mode & 0o005 == 0o005, "anybody on the machine reads it"
    assert one.inside("id", "-u").stdout.strip() == "10001"
    assert one.inside("touch", "/opt/tarn/x", check=False).returncode != 0, "the root is read-only"
    assert one.daemon.inspect(one.container())["RestartCount"] == 0


def test_the_walls_that_stand_on_the_machine_stand_in_the_container(stack, tmp_path):
    one = stack()
    one.up()
    command = [binary(), "doctor", "--json", "--state-dir", tmp_path / "state", "--store", f"file:{tmp_path}/store"]
    here = walls(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout)
    inside = walls(one.inside("tarn", "doctor", "--json", check=False).stdout)
    # Control groups can't be written there; without them engines watch their own memory.
    assert {"seccomp", "privileges", "core_dumps"} <= here - {"limits"} <= inside


def walls(report):
    found = json.loads(report)
    return {one["check"].removeprefix("wall ") for one in found if one["check"].startswith("wall ") and one["verdict"] == "ok"}


def test_what_make_serve_left_is_taken_over(stack):
    one = stack(TARN_UID="12345", TARN_GID="12345")
    before = Server(one.root, arguments=["--store", f"file:{one.objects}"])
    before.state = one.state
    before.start()
    before.query("CREATE TABLE t AS SELECT 42 AS a")
    before.stop()
    one.up()
    assert one.rows("FROM t") == [[42]]
    assert {path.stat().st_uid for path in (one.state, *one.state.iterdir(), one.objects)} == {12345}


def test_with_the_s3_profile_a_killed_container_and_a_lost_volume_lose_nothing(stack):
    one = stack("s3", **WITH_S3)
    one.up()
    assert one.daemon.inspect(one.container())["RestartCount"] == 0, "it waits for its buckets rather than fail"
    assert one.daemon.run("docker", "logs", one.container("duckdb-before")).stdout == "", "nothing was missing in the end"
    s3 = one.s3()
    for bucket in ("tarn-control", "sm-default-analytics", "sm-default-processed", "sm-default-raw"):
        assert s3.client().get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"http://{s3.address}/sm-default-analytics", timeout=10)

    one.query("CREATE TABLE t (a BIGINT)")
    acknowledged = insert_until(lambda: one.daemon.run("docker", "kill", one.container()), one)
    one.daemon.run("docker", "rm", one.container())
    shutil.rmtree(one.state)
    one.up()
    kept = [a for (a,) in one.rows("SELECT a FROM t ORDER BY a")]
    # The one that was under way may be there or not.
    assert kept in (acknowledged, acknowledged + [len(acknowledged)])

    # A stop in order ships what was not in the store yet.
    one.query("INSERT INTO t VALUES (-1)", durability="local")
    one.compose("rm", "--stop", "--force", "duckdb")
    shutil.rmtree(one.state)
    one.up("duckdb")
    assert one.rows("SELECT count(*) FROM t") == [[len(kept) + 1]]

    # And everything at once, as when the machine is started anew.
    one.compose("kill")
    one.up()
    assert one.rows("SELECT count(*) FROM t") == [[len(kept) + 1]]


def insert_until(kill, server):
    """0, 1, 2 … each in a commit of its own, with the kill in between: those that were acknowledged."""
    acknowledged, enough = [], threading.Event()

    def write():
        with contextlib.suppress(OSError, http.client.HTTPException, Refused):
            while True:
                server.query(f"INSERT INTO t VALUES ({len(acknowledged)})")
                acknowledged.append(len(acknowledged))
                if len(acknowledged) == 20:
                    enough.set()

    writer = threading.Thread(target=write)
    writer.start()
    assert enough.wait(60)
    kill()
    writer.join(60)
    assert not writer.is_alive()
    return acknowledged


def test_with_the_monitoring_profile_prometheus_scrapes_the_server(stack):
    port = free_port()
    one = stack("monitoring", PROMETHEUS_PORT=str(port))
    one.up("duckdb", "prometheus")
    deadline = time.monotonic() + 60
    found = []
    while found != ["up"]:
        assert time.monotonic() < deadline, f"{found}\n{one.compose('logs', 'prometheus').stdout[-2000:]}"
        with contextlib.suppress(OSError):
            answer = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/targets", timeout=5))
            found = [target["health"] for target in answer["data"]["activeTargets"]]
        time.sleep(0.2)
    rules = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/rules", timeout=5))
    assert sum(len(group["rules"]) for group in rules["data"]["groups"]) == 11
