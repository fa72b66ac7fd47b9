"""A Postgres server of the tests' own: the real one, on a free port, in a directory of its own."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psycopg

from served import free_port

PASSWORD = "postgres-secret"


def programs():
    """Debian keeps them off the path, by version."""
    found = shutil.which("initdb")
    return Path(found).parent if found else max(Path("/usr/lib/postgresql").glob("*/bin"))


class Postgres:
    def __init__(self, root):
        self.root = Path(root)
        self.port = free_port()
        self.process = None

    def start(self, *options):
        data = self.root / "data"
        if not data.exists():
            (self.root / "password").write_text(PASSWORD)
            if os.geteuid() == 0:
                # Postgres does not run as root; `postgres` is the package's own user.
                for path in (self.root, *self.root.parents):
                    if path in (Path("/dev/shm"), Path("/tmp"), Path("/")):
                        break
                    path.chmod(path.stat().st_mode | 0o711)
                shutil.chown(self.root, "postgres")
            self.run("initdb", "--pgdata", data, "--username", "tarn", "--pwfile", self.root / "password", "--auth", "scram-sha-256", "--no-sync")
        command = [programs() / "postgres", "-D", data, "-p", self.port, "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.root}", *options]
        with open(self.root / "postgres.log", "ab") as log:
            self.process = subprocess.Popen(self.as_its_user(command), stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            try:
                self.connect().close()
                return self
            except psycopg.OperationalError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.root / "postgres.log").read_text()[-2000:]
                time.sleep(0.05)

    @staticmethod
    def as_its_user(command):
        words = [str(word) for word in command]
        return ["setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups", *words] if os.geteuid() == 0 else words

    def run(self, program, *words):
        subprocess.run(self.as_its_user([programs() / program, *words]), check=True, stdout=subprocess.DEVNULL, cwd=self.root)

    def url(self, user="tarn", password=PASSWORD, database="postgres", options=""):
        return f"postgres://{user}:{password}@127.0.0.1:{self.port}/{database}{options}"

    def connect(self):
        return psycopg.connect(self.url(), autocommit=True, connect_timeout=5)

    def rows(self, sql, *parameters):
        with self.connect() as connection:
            found = connection.execute(sql, parameters)
            return found.fetchall() if found.description else None

    def stop(self, number=signal.SIGINT):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)
