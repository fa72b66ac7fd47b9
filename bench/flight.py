"""Results over every way out: HTTP, Flight SQL by two clients, against DuckDB in the process of the reader and DuckDB's own remote protocol.

Whole tables for throughput, 100 rows for latency, one client and 32. The 32 are threads of four processes, since Python runs one thread
at a time: with all in one process it would be Python that is measured.
"""

import contextlib
import shutil
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import data
from clients import OURS, PEERS, WAYS, Place
from quack import Quack
from report import Figure
from served import free_port

NUMERIC = "SELECT l_orderkey, l_partkey, l_suppkey, l_linenumber FROM lineitem"
QUERIES = {"all 16 columns": "SELECT * FROM lineitem", "4 numeric columns": NUMERIC}
# 101 rows. Not a LIMIT: DuckDB itself takes 3 to 10 ms for one over all columns of a big table, and that is not what is measured.
SMALL = "SELECT * FROM lineitem WHERE l_orderkey <= 98"
# The least ratio to DuckDB in-process, for 16 and for 4 columns.
WANTED = {"HTTP Arrow": ("≥ 0.5", "≥ 0.3"), "Flight SQL, pyarrow": ("≥ 0.45", "≥ 0.25"), "Flight SQL, ADBC": ("", "")}
OVER_QUACK = ("≥ 3", "≥ 2")
FIRST_BYTE_MS = 3
ROUNDS = 5
CALLS = 300
PROCESSES, THREADS, SECONDS = 4, 8, 5


def measure(server):
    with place(server) as where:
        ways = {name: way(where) for name, way in WAYS.items()}
        try:
            yield transfers(ways)
            yield latencies(ways)
        finally:
            for way in ways.values():
                way.close()
        yield crowds(where, "100 rows", SMALL, "/s", lambda count: f"{count / SECONDS:,.0f}")
        yield crowds(where, "4 numeric columns", NUMERIC, " Mrow/s", lambda count: f"{count * data.ROWS / SECONDS / 1e6:.1f}")


@contextlib.contextmanager
def place(server):
    """Our server, and quack beside it on a copy of the same data."""
    database = server.root / "quack.db"
    shutil.copy(data.DATABASE, database)
    served = Quack(database, free_port())
    try:
        yield Place(server.address, server.token, served.port)
    finally:
        served.stop()
        database.unlink()


def transfers(ways):
    figures = []
    for at, (title, sql) in enumerate(QUERIES.items()):
        seconds, size = in_turns(ways, sql)
        for name in OURS:
            ours = seconds[name]
            for peer, want in (("in-process", WANTED[name][at]), ("quack", OVER_QUACK[at])):
                ratio = seconds[peer] / ours
                figures.append(Figure(f"{title}: {name}; {peer}", rate(ours, size), rate(seconds[peer], size), ratio, want))
    return "Results of 6.0M rows as Arrow, one client; peers: DuckDB in the Python process, and quack", figures


def in_turns(ways, sql):
    """The best time of each way: in turns, so that a busy moment of the machine hits all."""
    times, size = {name: [] for name in ways}, 0
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            table = way.table(sql)
            times[name].append(time.perf_counter() - start)
            assert table.num_rows == data.ROWS
            size = table.nbytes
            # Given back before the next one is timed.
            del table
    return {name: min(taken) for name, taken in times.items()}, size


def latencies(ways):
    first = {name: median_ms(lambda: way.first(SMALL)) for name, way in ways.items()}
    whole = {name: median_ms(lambda: timed(lambda: way.table(SMALL))) for name, way in ways.items()}
    figures = []
    for name in OURS:
        over = first[name] / FIRST_BYTE_MS
        figures.append(Figure(f"First byte: {name}; the limit", shown(first[name]), shown(FIRST_BYTE_MS), over, "≤ 1"))
        for peer in PEERS:
            figures.append(Figure(f"Whole: {name}; {peer}", shown(whole[name]), shown(whole[peer]), whole[peer] / whole[name]))
    return "100 rows of 16 columns, one client, median", figures


def crowds(where, what, sql, unit, show):
    """32 clients that ask again and again for some seconds; answers of all of them together."""
    counts = {name: max(crowd(name, where, sql) for _ in range(2)) for name in WAYS}
    figures = [
        Figure(f"{what}: {name}; {peer}", show(counts[name]) + unit, show(counts[peer]) + unit, counts[name] / counts[peer])
        for name in OURS
        for peer in PEERS
    ]
    return f"{PROCESSES * THREADS} clients, {what}", figures


def crowd(name, where, sql):
    context = get_context("spawn")
    together = context.Barrier(PROCESSES * THREADS)
    with ProcessPoolExecutor(PROCESSES, context, initializer=wait_for, initargs=(together,)) as pool:
        tasks = [pool.submit(ask_again, name, where, sql) for _ in range(PROCESSES)]
        return sum(task.result() for task in tasks)


def wait_for(together):
    """In a process of its own: what lets all clients begin when the last one has connected."""
    global begin
    begin = together


def ask_again(name, where, sql):
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda _: one_client(name, where, sql), range(THREADS)))


def one_client(name, where, sql):
    """Answers that ended in time; of one that did not, the part of its time that was in time."""
    way = WAYS[name](where)
    way.table(SMALL)
    begin.wait(timeout=120)
    end, count = time.monotonic() + SECONDS, 0
    while (started := time.monotonic()) < end:
        way.table(sql)
        count += min(1, (end - started) / (time.monotonic() - started))
    way.close()
    return count


def median_ms(sample):
    sample()
    return statistics.median(sample() for _ in range(CALLS)) * 1e3


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def shown(milliseconds):
    return f"{milliseconds:.2f} ms"


def rate(seconds, size):
    return f"{data.ROWS / seconds / 1e6:.1f} Mrow/s, {size / seconds / 1e6:.0f} MB/s"
