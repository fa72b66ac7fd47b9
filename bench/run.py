#!/usr/bin/env python3
"""`make bench`: every figure of docs/performance.md, measured in one run and written into it.

    bench/run.py [--only idle,selects,flight,cpu,ingest,commits,bulk,history,restore,marts,neighbours,persist,pipelines] [--stores file,s3] [--print]

Each figure is a ratio to a peer that is measured in the same minutes on the same machine: DuckDB in-process for the same statement,
DuckDB's own remote protocol, our own `local` for `object`, parallel GETs for a restore. Ratios travel between machines, seconds don't. Nothing else should run meanwhile.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "tests")]

import cpu  # noqa: E402
import data  # noqa: E402
import flight  # noqa: E402
import history  # noqa: E402
import ingest  # noqa: E402
import persist  # noqa: E402
import pipelines  # noqa: E402
import replication  # noqa: E402
import report  # noqa: E402
import statements  # noqa: E402
import tenants  # noqa: E402
from served import Server, Weed  # noqa: E402

FIGURES = ["idle", "selects", "flight", "cpu", "ingest", "commits", "bulk", "history", "restore", "marts", "neighbours", "persist", "pipelines"]
BUCKETS = ["tarn-control", "sm-default-analytics", "sm-default-processed", "sm-default-raw"]


def main():
    args = parse_args()
    os.environ.setdefault("TARN_BINARY", str(ROOT / "target" / "debug" / "tarn"))
    data.make()
    sections = []
    for store in args.stores:
        for title, figures in measure(store, args.only):
            print(f"\n{title}\n{report.table(figures)}", flush=True)
            sections.append((title, figures))
    if not args.print:
        report.write(sections, build=Path(os.environ["TARN_BINARY"]).parent.name)
        print(f"\nwritten to {report.PAGE.relative_to(ROOT)}")


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=FIGURES, help="some figures only; implies --print")
    parser.add_argument("--stores", type=lambda text: text.split(","), default=["file", "s3"])
    parser.add_argument("--print", action="store_true", help="leave docs/performance.md alone")
    args = parser.parse_args()
    args.print = args.print or args.only != FIGURES or args.stores != ["file", "s3"]
    return args


def measure(store, only):
    """The sections of one store, as they are done. What does not depend on the store is measured on the embedded one."""
    with served(store) as (server, weed):
        name = "file store" if store == "file" else "SeaweedFS"
        if store == "file":
            if "idle" in only:
                server.query("SELECT 1", mart=data.MART)
                yield "Idle", [replication.idle_memory(server)]
            if "selects" in only:
                yield from statements.selects(server)
            for name, figures in (("flight", flight), ("cpu", cpu), ("ingest", ingest)):
                if name in only:
                    data.prepare(server)
                    yield from figures.measure(server)
            if "marts" in only:
                yield "Many marts", list(tenants.marts())
            if "neighbours" in only:
                yield "A bad neighbour", list(tenants.neighbours())
            if "persist" in only:
                yield from persist.measure()
            if "pipelines" in only:
                yield from pipelines.measure()
        if "bulk" in only:
            data.prepare(server)
            yield from replication.bulk(server, name)
        if "commits" in only:
            yield from statements.commits(server, name, weed)
        if "history" in only:
            yield from history.measure(server, weed, name)
        if "restore" in only and weed:
            yield from replication.restore(server, weed)


@contextlib.contextmanager
def served(store):
    root = Path(tempfile.mkdtemp(prefix="tarn-bench-", dir=os.environ.get("TARN_BENCH_DIR")))
    weed = server = None
    try:
        if store == "s3":
            weed = Weed(root / "weed").start(BUCKETS)
            weed.client().upload_file(str(data.PARQUET), "sm-default-processed", "tpch/lineitem.parquet")
            server = Server(root, weed.environment(), ["--store", "s3"])
        else:
            server = Server(root)
            bucket = server.objects / "sm-default-processed" / "tpch"
            bucket.mkdir(parents=True)
            shutil.copy(data.PARQUET, bucket)
        server.start()
        server.create_mart(data.MART)
        yield server, weed
    finally:
        for part in (server, weed):
            if part:
                part.stop()
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
