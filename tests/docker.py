"""A Docker daemon of the tests' own, with the images that nobody can pull here: Debian made by debootstrap, SeaweedFS from its binary."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from served import ROOT, binary

BASE, SEAWEEDFS = "debian:bookworm-slim", "chrislusf/seaweedfs:4.48"
CACHE = Path(os.environ.get("TARN_CACHE_DIR") or ROOT / "vendor" / "cache")
PROGRAMS = ("dockerd", "docker", "docker-compose", "debootstrap")


def why_not():
    """Why there can be no daemon here, if that shows before it is tried."""
    missing = [program for program in PROGRAMS if not shutil.which(program)]
    if os.geteuid() != 0:
        return "a Docker daemon wants root"
    return f"not installed: {', '.join(missing)} (scripts/setup --test installs them)" if missing else None


class Docker:
    def __init__(self, root):
        self.root = Path(root)
        self.environment = {**os.environ, "DOCKER_HOST": f"unix://{self.root}/docker.sock"}
        self.process = None

    def start(self):
        command = ["dockerd", f"--data-root={self.root}/data", f"--exec-root={self.root}/exec", f"--pidfile={self.root}/docker.pid"]
        command += [f"--host=unix://{self.root}/docker.sock", f"--containerd-namespace=tarn-{os.getpid()}"]
        with open(self.root / "dockerd.log", "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while self.run("docker", "version", check=False).returncode != 0:
            if self.process.poll() is not None:
                pytest.skip(f"this machine lets no Docker daemon start: {self.log()[-400:]}")
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)
        return self

    def log(self):
        return (self.root / "dockerd.log").read_text()[-4000:]

    def stop(self):
        if self.process and self.process.poll() is None:
            ids = self.run("docker", "ps", "--all", "--quiet", check=False).stdout.split()
            if ids:
                self.run("docker", "rm", "--force", *ids, check=False)
            self.process.terminate()
            self.process.wait(timeout=60)

    def run(self, *command, check=True, cwd=None, stdin=None, **variables):
        done = subprocess.run(
            [str(word) for word in command], env={**self.environment, **variables}, cwd=cwd, stdin=stdin, capture_output=True, text=True, timeout=600
        )
        assert not check or done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def make_images(self):
        """Ours, and those that it and the stack stand on."""
        with open(debian()) as archive:
            self.run("docker", "import", "-", BASE, stdin=archive)
        weed = self.root / "weed"
        weed.mkdir()
        shutil.copy(ROOT / "vendor" / "test" / "weed", weed)
        (weed / "Dockerfile").write_text(f"FROM {BASE}\nCOPY weed /usr/bin/weed\n")
        self.run("docker", "build", "--tag", SEAWEEDFS, weed)
        self.run(ROOT / "scripts" / "stage-image", binary())
        self.run("docker", "build", "--tag", "tarn:latest", ROOT)


def debian():
    """The smallest Debian 12, as an archive; made once."""
    kept = CACHE / "debian-bookworm.tar"
    if not kept.exists():
        made, fresh = CACHE / "debian-bookworm", kept.with_suffix(".new")
        shutil.rmtree(made, ignore_errors=True)
        subprocess.run(["debootstrap", "--variant=minbase", "bookworm", made], check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["tar", "--create", "--file", fresh, "--directory", made, "--exclude=./var/cache/apt/archives/*.deb", "."], check=True)
        shutil.rmtree(made)
        fresh.replace(kept)
    return kept
