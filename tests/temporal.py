"""A Temporal server of the tests' own, and our worker on it: both real, on free ports, to be killed as a test likes."""

import asyncio
import os
import signal
import subprocess
import time

from temporalio.client import Client

from served import ROOT, binary, free_port


class Temporal:
    def __init__(self, root):
        self.root, self.address = root, f"127.0.0.1:{free_port()}"
        self.process = None

    def start(self):
        ip, port = self.address.split(":")
        command = [ROOT / "vendor" / "test" / "temporal", "server", "start-dev", "--headless", "--ip", ip, "--port", port]
        command += ["--db-filename", self.root / "temporal.db", "--log-level", "error"]
        with open(self.root / "temporal.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        return self

    def stop(self):
        self.process.kill()
        self.process.wait(timeout=30)

    async def client(self):
        deadline = time.monotonic() + 60
        while True:
            try:
                return await Client.connect(self.address)
            except RuntimeError:
                assert self.process.poll() is None and time.monotonic() < deadline, (self.root / "temporal.log").read_text()
                await asyncio.sleep(0.1)


def worker_binary():
    return binary().with_name("tarn-worker")


class Worker:
    """`tarn-worker` for a mart, with the node's admin token."""

    def __init__(self, root, temporal, mart, queue):
        self.root, self.queue = root, queue
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        dsn = f"tarn://{mart.token}@{mart.server.address}/{mart.name}"
        self.environment = {**kept, "TEMPORAL_ADDRESS": temporal.address, "TARN_DSN": dsn, "TARN_TASK_QUEUE": queue}
        self.process = None

    def start(self):
        with open(self.root / "worker.log", "ab") as log:
            self.process = subprocess.Popen([worker_binary(), "run"], stdout=log, stderr=log, env=self.environment)
        return self

    def stop(self, number=signal.SIGTERM):
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(timeout=60)

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def command(self, *words, timeout=120):
        return subprocess.run([worker_binary(), *words], capture_output=True, text=True, env=self.environment, timeout=timeout)
