"""One owner of the server for all Python tests: the real binary, on a free port, in directories of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "vendor" / "data" / "sm-default-processed"


def binary():
    named = os.environ.get("TARN_BINARY")
    return Path(named) if named else Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "tarn"


class Refused(Exception):
    """The server's answer was an error of the contract."""

    def __init__(self, status, body):
        super().__init__(f"{status}: {body}")
        self.status, self.body = status, body


class Server:
    """A node over a directory; `stop`, `kill` and `start` again as often as a test likes."""

    def __init__(self, root, environment=(), arguments=()):
        self.root = Path(root)
        self.state = self.root / "state"
        self.objects = self.root / "objects"
        self.token = uuid.uuid4().hex + uuid.uuid4().hex
        self.environment = dict(environment)
        self.arguments = list(arguments) or ["--store", f"file:{self.objects}"]
        self.process = None
        self.address = None

    def start(self):
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "address").unlink(missing_ok=True)
        command = [binary(), "serve", "--listen", "127.0.0.1:0", "--state-dir", self.state, *self.arguments]
        # A clean environment: the machine's own TARN_* and DUCKDB_* must not decide a test.
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        with open(self.root / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**kept, "TARN_ADMIN_TOKEN": self.token, **self.environment},
            )
        self.address = self._wait_for("address", lambda: (self.state / "address").read_text().strip())
        self._wait_for("readiness", lambda: urllib.request.urlopen(f"http://{self.address}/readyz", timeout=5).status)
        return self

    def _wait_for(self, what, probe):
        deadline = time.monotonic() + 60
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the server exited with {self.process.returncode}:\n{self.log()}")
            try:
                if value := probe():
                    return value
            except (OSError, urllib.error.URLError):
                pass
            assert time.monotonic() < deadline, f"no {what} in time:\n{self.log()}"
            time.sleep(0.02)

    def stop(self):
        self._end(signal.SIGTERM)

    def kill(self):
        self._end(signal.SIGKILL)

    def _end(self, number):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)

    def log(self):
        return (self.root / "server.log").read_text(errors="replace")[-4000:]

    def request(self, method, path, body=None, headers=()):
        request = urllib.request.Request(
            f"http://{self.address}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"authorization": f"Bearer {self.token}", "content-type": "application/json", **dict(headers)},
        )
        try:
            return urllib.request.urlopen(request, timeout=120)
        except urllib.error.HTTPError as error:
            raise Refused(error.code, error.read().decode()) from None

    def query(self, sql, mart="default/dev", **options):
        """The contract's JSON answer."""
        tenant, name = mart.split("/")
        with self.request("POST", f"/v1/tenants/{tenant}/marts/{name}/query", {"sql": sql, **options}) as answer:
            return json.load(answer)

    def rows(self, sql, **options):
        return self.query(sql, **options)["rows"]

    def put_tour_data(self, bucket="sm-default-processed"):
        shutil.copytree(DATA, self.objects / bucket, dirs_exist_ok=True)


@pytest.fixture
def server(tmp_path):
    """A fresh node on the embedded store, with the tour's data in the tenant's processed bucket."""
    server = Server(tmp_path)
    server.put_tour_data()
    server.start()
    yield server
    server.stop()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
