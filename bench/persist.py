"""A result into Postgres: lineitem's 6M rows, against Postgres reading the same from a file of its own, and DuckDB's own extension."""

import shutil
import tempfile
import threading
import time
from pathlib import Path

import duckdb

import data
from marts import Mart
from postgres import Postgres
from report import Figure
from served import Server

ROUNDS = 2
EXTENSION = data.ROOT / "vendor" / "duckdb" / "ext" / "postgres_scanner.duckdb_extension"


def measure():
    root = Path(tempfile.mkdtemp(prefix="tarn-persist-"))
    postgres = Postgres(root / "postgres")
    postgres.root.mkdir()
    postgres.start("-c", "max_wal_size=8GB", "-c", "wal_level=minimal", "-c", "max_wal_senders=0", "-c", "fsync=off")
    server = Server(root / "node", {"TARN_POSTGRES_MAIN": postgres.url()})
    (server.objects / "sm-default-processed" / "tpch").mkdir(parents=True)
    shutil.copy(data.PARQUET, server.objects / "sm-default-processed" / "tpch")
    server.start()
    try:
        server.create_mart(data.MART)
        data.prepare(server)
        yield from compare(server, postgres, root)
    finally:
        server.stop()
        postgres.stop()
        shutil.rmtree(root, ignore_errors=True)


def compare(server, postgres, root):
    mart = Mart(server, data.MART)
    ours, copies, extension, most = [], [], [], 0
    # The table once, and its file: both sides write into empty ones like it.
    persist(mart, "lineitem", "create")
    file = postgres.root / "lineitem.bin"
    postgres.rows(f"COPY lineitem TO '{file}' (FORMAT binary)")
    for _ in range(ROUNDS):
        postgres.rows("DROP TABLE IF EXISTS ours; CREATE TABLE ours (LIKE lineitem)")
        with Watch(server) as watch:
            ours.append(seconds(lambda: persist(mart, "ours", "append")))
        most = max(most, watch.most)
        postgres.rows("DROP TABLE IF EXISTS theirs; CREATE TABLE theirs (LIKE lineitem)")
        copies.append(seconds(lambda: postgres.rows(f"COPY theirs FROM '{file}' (FORMAT binary)")))
        postgres.rows("DROP TABLE IF EXISTS peers; CREATE TABLE peers (LIKE lineitem)")
        with duckdb.connect() as con:
            con.execute(f"LOAD '{EXTENSION}'; ATTACH '{data.DATABASE}' AS own (READ_ONLY); ATTACH '{postgres.url()}' AS pg (TYPE postgres)")
            extension.append(seconds(lambda: con.execute("INSERT INTO pg.peers FROM own.lineitem")))
    assert postgres.rows("SELECT count(*) FROM ours") == [(data.ROWS,)] == postgres.rows("SELECT count(*) FROM peers")
    rate = lambda taken: f"{data.ROWS / min(taken) / 1e3:.0f} krow/s"  # noqa: E731
    yield (
        "Persisting 6.0M rows of 16 columns into Postgres",
        [
            Figure("against `COPY FROM` a local binary file", rate(ours), rate(copies), min(copies) / min(ours), "≥ 0.9"),
            Figure("against DuckDB's postgres extension", rate(ours), rate(extension), min(extension) / min(ours), "≥ 1.2"),
            Figure("most memory of the node meanwhile", f"{most >> 20} MB", ""),
        ],
    )


class Watch:
    """The node's own resident memory, without its engines'."""

    def __init__(self, server):
        self.pid, self.most, self.over = server.process.pid, 0, threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.look)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()

    def look(self):
        while not self.over.wait(0.1):
            status = Path(f"/proc/{self.pid}/status").read_text()
            self.most = max(self.most, int(status.split("VmRSS:")[1].split()[0]) << 10)


def persist(mart, table, mode):
    to = {"connection": "main", "table": table, "mode": mode}
    return mart.json("POST", "/persist", {"sql": "FROM lineitem", "postgres": to, "timeout_ms": 900_000})


def seconds(work):
    started = time.monotonic()
    work()
    return time.monotonic() - started
