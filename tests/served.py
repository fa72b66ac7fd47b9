"""The one owner of servers for Python tests and the bench: the real binary and a real S3 server, on free ports, in directories of their own."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

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
        self.listen = "127.0.0.1:0"
        self.weed = None
        self.process = None
        self.address = None

    def start(self):
        self.state.mkdir(parents=True, exist_ok=True)
        (self.state / "address").unlink(missing_ok=True)
        command = [binary(), "serve", "--listen", self.listen, "--state-dir", self.state, *self.arguments]
        # A clean environment: the machine's own TARN_* and DUCKDB_* must not decide a test.
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
        with open(self.root / "server.log", "ab") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**kept, **({"TARN_ADMIN_TOKEN": self.token} if self.token else {}), "TARN_TAKEOVER_AFTER": "never", **self.environment},
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

    def create_mart(self, mart):
        tenant, name = mart.split("/")
        self.request("POST", f"/v1/tenants/{tenant}/marts", {"name": name}).close()

    def query(self, sql, mart="default/dev", **options):
        """The contract's JSON answer."""
        tenant, name = mart.split("/")
        with self.request("POST", f"/v1/tenants/{tenant}/marts/{name}/query", {"sql": sql, **options}) as answer:
            return json.load(answer)

    def rows(self, sql, **options):
        return self.query(sql, **options)["rows"]

    def put_tour_data(self, bucket="sm-default-processed"):
        """Straight into the store: files of a directory, or objects of the S3 server."""
        if self.weed is None:
            shutil.copytree(DATA, self.objects / bucket, dirs_exist_ok=True)
            return
        for path in filter(Path.is_file, DATA.rglob("*")):
            self.weed.client().upload_file(str(path), bucket, str(path.relative_to(DATA)))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Weed:
    """SeaweedFS as an S3 server on loopback."""

    ACCESS_KEY, SECRET_KEY = "weed", "weed-secret"

    def __init__(self, root):
        self.root = Path(root)
        self.process = None
        self.address = None

    def start(self, buckets=()):
        program = os.environ.get("TARN_TEST_WEED", ROOT / "vendor" / "test" / "weed")
        self.root.mkdir(parents=True, exist_ok=True)
        identity = {
            "name": "tarn",
            "credentials": [{"accessKey": self.ACCESS_KEY, "secretKey": self.SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (self.root / "s3.json").write_text(json.dumps({"identities": [identity]}))
        # gRPC ports are the HTTP ports + 10000, so both must be free.
        master, volume, filer, s3 = (free_port_pair() for _ in range(4))
        self.address = f"127.0.0.1:{s3}"
        with open(self.root / "weed.log", "ab") as log:
            self.process = subprocess.Popen(
                [program, "server", "-ip=127.0.0.1", f"-dir={self.root}", "-volume.max=100", "-master.volumeSizeLimitMB=1024"]
                + [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
                + ["-s3", "-s3.port.lance=0", "-s3.port.iceberg=0", f"-s3.config={self.root}/s3.json"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        deadline = time.monotonic() + 60
        client = self.client()
        for bucket in buckets:
            while True:
                try:
                    client.create_bucket(Bucket=bucket)
                    break
                except Exception as error:  # not listening yet, or its volumes are not ready yet
                    assert self.process.poll() is None, (self.root / "weed.log").read_text()[-2000:]
                    assert time.monotonic() < deadline, error
                    time.sleep(0.1)
        return self

    def client(self):
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=f"http://{self.address}",
            region_name="us-east-1",
            aws_access_key_id=self.ACCESS_KEY,
            aws_secret_access_key=self.SECRET_KEY,
            config=Config(retries={"max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def environment(self):
        """What a server needs to use it, by the names that users know."""
        return {
            "DUCKDB_S3_ENDPOINT": f"http://{self.address}",
            "DUCKDB_S3_REGION": "us-east-1",
            "DUCKDB_ACCESS_KEY_ID": self.ACCESS_KEY,
            "DUCKDB_SECRET_ACCESS_KEY": self.SECRET_KEY,
        }

    def stop(self):
        if self.process and self.process.poll() is None:
            # A polite stop takes it 15 s, and its data is thrown away anyway.
            self.process.kill()
            self.process.wait()


def free_port_pair():
    """A port whose number + 10000 is free too, both below what the kernel gives to outgoing connections."""
    while True:
        port = random.randrange(11_000, 22_700)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10000))
                return port
            except OSError:
                continue
