"""What Temporal adds to a step: a chain of tiny steps as a transform, against the same statements sent one after the other."""

import asyncio
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import data
from marts import Mart
from report import Figure
from served import Server
from temporal import Temporal, Worker

STEPS = 40
ROUNDS = 3


def measure():
    root = Path(tempfile.mkdtemp(prefix="tarn-pipelines-"))
    server = Server(root / "node")
    server.root.mkdir()
    temporal = Temporal(root)
    try:
        server.start()
        temporal.start()
        mart = Mart.fresh(server)
        with Worker(root, temporal, mart, "bench") as worker:
            yield "Steps of a transform", [asyncio.run(overhead(temporal, worker, mart))]
    finally:
        temporal.stop()
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


async def overhead(temporal, worker, mart):
    client = await temporal.client()

    async def transform(steps):
        """Seconds of a chain of so many; the mart itself is its place, so that the rest is the same for any number."""
        chain = [{"name": f"s{n}", "sql": "SELECT 1", "needs": [f"s{n - 1}"] if n else []} for n in range(steps)]
        given = {"name": "bench", "mart": mart.name, "place": "snapshot", "steps": chain}
        begun = time.perf_counter()
        await client.execute_workflow("tarn_transform", given, id=f"bench-{uuid.uuid4().hex}", task_queue=worker.queue)
        return time.perf_counter() - begun

    def direct():
        begun = time.perf_counter()
        for _ in range(STEPS):
            mart.query("SELECT 1")
        return (time.perf_counter() - begun) / STEPS

    mart.query("CREATE TABLE t AS SELECT 1")
    await transform(1)
    steps = [(await transform(STEPS + 1) - await transform(1)) / STEPS for _ in range(ROUNDS)]
    plain = min([await asyncio.to_thread(direct) for _ in range(ROUNDS)])
    taken = min(steps)
    over = (taken - plain) * 1e3
    return Figure(f"what a step takes over its statement alone, which takes {plain * 1e3:.1f} ms", f"{over:.1f} ms", "", over, "≤ 50 ms")
