"""Makes the files in `life/`: a mart's files as DuckDB 1.5.5 left them after each step of a life, zstd-compressed.

Needs duckdb==1.5.5 and zstandard. Run it only for a new DuckDB version, into a folder of its own: old bytes must stay readable.
`life.json` names the steps in order; `fork-*` is another future of step `small-after-checkpoint`.
"""

import json
import os
import shutil
import struct
import sys
import tempfile

import duckdb
import zstandard

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), sys.argv[1] if len(sys.argv) > 1 else "life")
SETTINGS = [
    "SET wal_autocheckpoint='1TB'",
    "SET auto_checkpoint_skip_wal_threshold=1000000000000000",
    "SET debug_skip_checkpoint_on_commit=true",
    "PRAGMA disable_checkpoint_on_shutdown",
    "SET threads=1",
]


def attach(path, read_only=False):
    con = duckdb.connect(":memory:")
    for setting in SETTINGS:
        con.execute(setting)
    options = "READ_ONLY" if read_only else "STORAGE_VERSION 'v1.5.0'"
    con.execute(f"ATTACH '{path}' AS mart ({options})")
    con.execute("USE mart")
    return con


def iteration(path):
    with open(path, "rb") as file:
        header = file.read(12288)
    return max(struct.unpack_from("<Q", header, at + 8)[0] for at in (4096, 8192))


def wal_bytes(path):
    return os.path.getsize(path + ".wal") if os.path.exists(path + ".wal") else 0


def save(name, path):
    for suffix in ("", ".wal"):
        if not os.path.exists(path + suffix):
            continue
        with open(path + suffix, "rb") as file:
            packed = zstandard.ZstdCompressor(level=19).compress(file.read())
        with open(os.path.join(OUT, name + (suffix or ".db") + ".zst"), "wb") as file:
            file.write(packed)


class Life:
    def __init__(self, folder):
        self.path = os.path.join(folder, "mart.db")
        self.con = attach(self.path)
        self.steps = []

    def step(self, name, *statements, checkpoint=False):
        ends = []
        for statement in statements:
            self.con.execute(statement)
            ends.append(wal_bytes(self.path))
        if checkpoint:
            self.con.execute("CHECKPOINT")
        save(name, self.path)
        # A copy, opened afresh without its WAL, says what DuckDB itself reads from the free list.
        with tempfile.TemporaryDirectory() as folder:
            copy = os.path.join(folder, "copy.db")
            shutil.copy(self.path, copy)
            con = attach(copy, read_only=True)
            total, free = con.execute("SELECT total_blocks, free_blocks FROM pragma_database_size() WHERE database_name = 'mart'").fetchone()
            con.close()
        self.steps.append({
            "name": name, "iteration": iteration(self.path), "ends": ends, "checkpoint": checkpoint,
            "total_blocks": total, "free_blocks": free,
        })


BULK = "SELECT i, i // 1000 AS k, [i // 5000, i // 7000] AS l, {'a': i // 100, 'b': 'text ' || (i // 20000)} AS s FROM range(150000) r(i)"

with tempfile.TemporaryDirectory() as folder:
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    life = Life(folder)
    life.step("new")
    life.step("small", "CREATE TABLE t(i INTEGER, s VARCHAR)", "INSERT INTO t VALUES (1, 'one')", "INSERT INTO t VALUES (2, NULL)")
    life.step("bulk", f"CREATE TABLE b AS {BULK}")
    life.step("mixed", "DELETE FROM b WHERE i % 10000 = 3", "UPDATE t SET s = 'eins' WHERE i = 1", "CREATE INDEX x ON t(i)")
    life.step("checkpoint", checkpoint=True)
    shutil.copy(life.path, os.path.join(folder, "fork.db"))
    life.step("small-after-checkpoint", "INSERT INTO t VALUES (3, repeat('long', 2000))")
    life.step("bulk-after-checkpoint", f"INSERT INTO b {BULK}", "INSERT INTO t VALUES (4, 'four')")
    life.step("checkpoint-2", checkpoint=True)
    life.step("drop", "DROP TABLE b", "INSERT INTO t VALUES (5, 'five')")
    life.step("checkpoint-3", checkpoint=True)
    life.step("bulk-into-free-blocks", f"CREATE TABLE c AS {BULK}", "INSERT INTO t VALUES (6, 'six')")
    life.con.close()

    # The same base, another future: DuckDB's own guard does not tell these WALs apart.
    fork = os.path.join(folder, "fork.db")
    con = attach(fork)
    con.execute("INSERT INTO t VALUES (3, repeat('LONG', 2000))")
    con.close()
    save("fork-small", fork)

    with open(os.path.join(OUT, "life.json"), "w") as file:
        json.dump(life.steps, file, indent=1)
