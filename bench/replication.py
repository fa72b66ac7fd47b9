"""What replication costs a bulk load, how fast a lost mart is back, and what an idle node takes."""

import http.client
import shutil
import threading
import tempfile
import time
from pathlib import Path

import duckdb

import data
from report import Figure

COPY = "CREATE TABLE {name} AS FROM lineitem"
RESTORE_ROWS = 32_000_000  # of four incompressible 64-bit columns: a file of 1 GB
BIG = "default/big"
ROUNDS = 3


def bulk(server, store):
    """6M rows from a table of the mart into another one: the same statement, with and without Tarn around it."""
    ours, durable, peers = [], [], []
    for round_ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=server.root) as scratch:
            shutil.copy(data.DATABASE, f"{scratch}/peer.db")
            with duckdb.connect(f"{scratch}/peer.db") as con:
                peers.append(seconds(lambda: con.execute(COPY.format(name="bulk"))))
        ours.append(seconds(lambda: run(server, COPY.format(name=f"local_{round_}"), durability="local")))
        run(server, f"DROP TABLE local_{round_}")
        durable.append(seconds(lambda: run(server, COPY.format(name=f"object_{round_}"))))
        run(server, f"DROP TABLE object_{round_}")
    ours, durable, peers = min(ours), min(durable), min(peers)
    return [
        (
            f"Bulk load of 6.0M rows, {store}; peer: DuckDB in-process, no replica",
            [
                Figure("`durability=local`, replication on", mrows(ours), mrows(peers), peers / ours, "≥ 0.7"),
                Figure("`durability=object`", mrows(durable), mrows(peers), peers / durable),
            ],
        )
    ]


def restore(server, weed):
    """A mart of 1 GB after the loss of its disk, against fetching all objects of its replica with parallel GETs."""
    columns = ", ".join(f"(random() * 9e18)::BIGINT AS c{i}" for i in range(4))
    server.create_mart(BIG)
    run(server, "CREATE OR REPLACE TABLE big AS SELECT " + columns + f" FROM range({RESTORE_ROWS})", BIG)
    checksum = "SELECT count(*), bit_xor(c0), bit_xor(c3) FROM big"
    before = run(server, checksum, BIG)["rows"]
    server.stop()
    # What the page cache holds helps both sides alike.
    fetched, fetch_seconds = fetch_all(weed, "sm-default-analytics", "duckdb/big/")
    times = []
    for _ in range(ROUNDS):
        shutil.rmtree(server.state)
        server.start()
        times.append(seconds(lambda: run(server, "SELECT 1", BIG)))
        assert run(server, checksum, BIG)["rows"] == before
        server.stop()
    server.start()
    fetch_seconds = min(fetch_seconds, fetch_all(weed, "sm-default-analytics", "duckdb/big/")[1])
    best = min(times)
    return [
        (
            "Restore of a mart of 1 GB from SeaweedFS, first answer included; peer: the same objects by 16 parallel GETs, thrown away",
            [
                Figure(
                    f"{fetched / 1e6:,.0f} MB of objects",
                    f"{best:.2f} s",
                    f"{fetch_seconds:.2f} s",
                    best / fetch_seconds,
                    "≤ 1.5",
                )
            ],
        )
    ]


def fetch_all(weed, bucket, prefix):
    client = weed.client()
    keys = [
        item["Key"]
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        for item in page.get("Contents", [])
    ]
    urls = [client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}) for key in keys]
    paths = ["/" + url.split("/", 3)[3] for url in urls]
    total, lock, todo = [0], threading.Lock(), iter(paths)

    def worker():
        connection = http.client.HTTPConnection(weed.address)
        buffer = memoryview(bytearray(1 << 20))
        while True:
            with lock:
                path = next(todo, None)
            if path is None:
                return
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            size = 0
            while got := answer.readinto(buffer):
                size += got
            with lock:
                total[0] += size

    start = time.perf_counter()
    workers = [threading.Thread(target=worker) for _ in range(16)]
    for thread in workers:
        thread.start()
    for thread in workers:
        thread.join()
    return total[0], time.perf_counter() - start


def idle_memory(server):
    """Resident memory of the node's process alone, after it served something and fell idle."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    resident = int(fields["VmRSS"].split()[0]) / 1024
    return Figure("node, resident", f"{resident:.0f} MB", "", resident, "≤ 60")


def run(server, sql, mart=data.MART, **options):
    return server.query(sql, mart, timeout_ms=600_000, **options)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def mrows(taken):
    return f"{taken:.2f} s, {data.ROWS / taken / 1e6:.2f} Mrow/s"
