"""A Docker daemon of the tests' own, with the images that nobody can pull here: Debian made by debootstrap, others from their binaries.

It leaves the machine's networks alone: no bridge but those of stacks that are up, one rule while it runs. What is built, or run outside
of a stack, has no network.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from served import ROOT, binary

BASE, SEAWEEDFS, PROMETHEUS = "debian:bookworm-slim", "chrislusf/seaweedfs:4.48", "prom/prometheus:v2.53.5"
CACHE = Path(os.environ.get("TARN_CACHE_DIR") or ROOT / "vendor" / "cache")
PROGRAMS = ("dockerd", "docker", "docker-compose", "debootstrap", "prometheus")
# For networks of stacks: a range that is routed nowhere (RFC 2544).
ADDRESSES = "198.18.0.0/16"
# linux/capability.h
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21
FROM_THE_MACHINE = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy")


def why_not():
    """Why there can be no daemon here."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if missing:
        return f"not installed: {', '.join(missing)} (scripts/setup --test installs them)"
    capabilities = int(re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE).group(1), 16)
    if os.geteuid() != 0 or not all(capabilities >> one & 1 for one in (CAP_NET_ADMIN, CAP_SYS_ADMIN)):
        return "a Docker daemon wants root, with the rights to mount and to make networks"
    return None


class Docker:
    def __init__(self, root):
        self.root = Path(root)
        # Neither the machine's TARN_*, DUCKDB_* and COMPOSE_*, nor its user's settings of Docker.
        self.environment = {name: os.environ[name] for name in FROM_THE_MACHINE if name in os.environ}
        self.environment |= {"DOCKER_HOST": f"unix://{self.root}/docker.sock", "DOCKER_CONFIG": f"{self.root}/config"}
        self.process = None

    def start(self):
        command = ["dockerd", f"--data-root={self.root}/data", f"--exec-root={self.root}/exec", f"--pidfile={self.root}/docker.pid"]
        command += [f"--host=unix://{self.root}/docker.sock", f"--containerd-namespace=tarn-{os.getpid()}"]
        command += ["--bridge=none", "--iptables=false", "--ip-forward=false", f"--default-address-pool=base={ADDRESSES},size=24"]
        with open(self.root / "dockerd.log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while self.run("docker", "version", check=False).returncode != 0:
            if self.process.poll() is not None:
                pytest.skip(f"this machine lets no Docker daemon start: {self.log()[-300:]}")
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        self.let_containers_talk("--insert")
        return self

    def let_containers_talk(self, change):
        """To each other, where another daemon has made dropping the rule."""
        self.run("iptables", change, "FORWARD", "--source", ADDRESSES, "--destination", ADDRESSES, "--jump", "ACCEPT")

    def log(self):
        return (self.root / "dockerd.log").read_text()[-4000:]

    def stop(self):
        if self.process and self.process.poll() is None:
            ids = self.run("docker", "ps", "--all", "--quiet", check=False).stdout.split()
            if ids:
                self.run("docker", "rm", "--force", *ids, check=False)
            self.run("docker", "network", "prune", "--force", check=False)
            self.let_containers_talk("--delete")
            self.process.terminate()
            self.process.wait(timeout=60)
        # Half a gigabyte, of which pytest would keep three.
        shutil.rmtree(self.root / "data", ignore_errors=True)

    def run(self, *command, check=True, cwd=None, stdin=None, **variables):
        done = subprocess.run(
            [str(word) for word in command], env=self.environment | variables, cwd=cwd, stdin=stdin, capture_output=True, text=True, timeout=600
        )
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def inspect(self, container):
        return json.loads(self.run("docker", "inspect", container).stdout)[0]

    def await_health(self, container):
        deadline = time.monotonic() + 120
        while (state := self.inspect(container)["State"]).get("Health", {}).get("Status") != "healthy":
            assert time.monotonic() < deadline, f"{json.dumps(state)}\n{self.run('docker', 'logs', '--tail', '50', container, check=False).stderr}"
            time.sleep(0.2)

    def make_images(self):
        """Ours, and those that it and the stack stand on."""
        with open(debian()) as archive:
            self.run("docker", "import", "-", BASE, stdin=archive)
        self.wrap(SEAWEEDFS, ROOT / "vendor" / "test" / "weed")
        # As in its publisher's: the user, and a volume that is the user's.
        self.wrap(
            PROMETHEUS,
            Path(shutil.which("prometheus")),
            "RUN install -d -o nobody -g nogroup /prometheus",
            "VOLUME /prometheus",
            "USER nobody",
            'ENTRYPOINT ["/usr/bin/prometheus"]',
            'CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]',
        )
        self.run(ROOT / "scripts" / "stage-image", binary())
        self.run("docker", "build", "--tag", "tarn:latest", ROOT)

    def wrap(self, tag, program, *lines):
        """An image of one program."""
        context = self.root / program.name
        context.mkdir()
        shutil.copy(program, context)
        (context / "Dockerfile").write_text("\n".join([f"FROM {BASE}", f"COPY {program.name} /usr/bin/", *lines]))
        self.run("docker", "build", "--tag", tag, context)


def debian():
    """The smallest Debian 12, as an archive; made once."""
    kept = CACHE / "debian-bookworm.tar"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made, fresh = CACHE / "debian-bookworm", kept.with_suffix(".new")
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", made], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["tar", "--create", "--file", fresh, "--directory", made, "--exclude=./var/cache/apt/archives/*.deb", "."], check=True)
        shutil.rmtree(made)
        fresh.replace(kept)
    return kept
