"""Many tenants on one node: what an idle mart costs, how soon a closed one answers, and what a tenant feels of a bad neighbour."""

import contextlib
import os
import shutil
import statistics
import tempfile
import threading
import time
import urllib.error
from pathlib import Path

from report import Figure
from served import Refused, Server

MARTS = 200
OPENED = 40
# A notebook's query: some tens of milliseconds of work, and again and again the same.
TABLE = "CREATE TABLE t AS SELECT range % 97 AS a, hash(range) % 1000 AS b, 'row ' || range % 1000 AS c FROM range(1000000)"
QUERY = "SELECT a, sum(b), count(DISTINCT c) FROM t GROUP BY ALL ORDER BY ALL"
QUERIES = 300
# One of each kind: memory that can't be spilled, memory that can, processor time, work that no interrupt reaches, DuckDB's own defect.
BAD = [
    {"sql": "SELECT length(string_agg(repeat('x', 1000), '')) FROM range(100000000)"},
    {"sql": "SELECT count(*) FROM (SELECT DISTINCT hash(range), range FROM range(2000000000))"},
    {"sql": "SELECT list(range) FROM range(2000000000)"},
    {"sql": "SELECT count(*) FROM range(1000000000) a, range(1000000000) b"},
    {"sql": "SELECT list_reduce(range(10000000), lambda a, b: (a * 31 + b) % 1000003)"},
    {"sql": "SELECT typeof($1), 1 + $1", "params": [1]},
]
LOOPS = 4


@contextlib.contextmanager
def node(**environment):
    root = Path(tempfile.mkdtemp(prefix="tarn-tenants-"))
    server = Server(root, {"TARN_PUBLISH": "none", "TARN_ENGINE_IDLE_SECONDS": "0", **environment})
    try:
        yield server.start()
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


def marts():
    """The memory of idle marts, and the first answer of closed ones."""
    names = [f"t{number % 20}/m{number}" for number in range(MARTS)]
    with node() as server:
        for mart in names:
            tenant = mart.split("/")[0]
            if mart in names[:20]:
                server.request("POST", "/v1/tenants", {"name": tenant}).close()
            server.create_mart(mart)
            server.query("CREATE TABLE t AS SELECT range AS a FROM range(1000)", mart)
        time.sleep(5)
        shares = sorted(pss_mb(pid) for pid in children(server.process.pid))
        yield Figure(f"{len(shares)} idle engines, PSS each, mean", f"{statistics.mean(shares):.1f} MB", "", statistics.mean(shares), "≤ 40")
        yield Figure("the largest of them", f"{shares[-1]:.1f} MB", "")
        yield Figure("the node itself", f"{pss_mb(server.process.pid):.0f} MB", "")
        for spares, limit in ((1, 300), (0, 800)):
            server.stop()
            server.environment["TARN_SPARE_ENGINES"] = str(spares)
            server.start()
            times = first_answers(server, names[:OPENED])
            what = "with a spare engine" if spares else "without"
            yield Figure(f"first answer of a closed mart, {what}, p50", f"{times[len(times) // 2]:.0f} ms", "", times[len(times) // 2], f"≤ {limit}")
            yield Figure("the same, p95", f"{times[len(times) * 95 // 100]:.0f} ms", "")
        server.stop()
        shutil.rmtree(server.state)
        server.environment["TARN_SPARE_ENGINES"] = "1"
        server.start()
        times = first_answers(server, names[:OPENED])
        yield Figure("the same after a lost disk: restored first, p50", f"{times[len(times) // 2]:.0f} ms", "")


def first_answers(server, names):
    times = []
    for mart in names:
        # The next spare comes up meanwhile, as it would between two users.
        time.sleep(0.5)
        start = time.perf_counter()
        assert server.query("SELECT count(*) FROM t", mart)["rows"] == [[1000]]
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def neighbours():
    """A tenant's queries alone on half of the processors, which is its share, and beside one that does its worst."""
    with two_tenants(TARN_ENGINE_THREADS=str(max(1, os.cpu_count() // 2))) as server:
        alone = latencies(server, QUERIES)
    with two_tenants() as server:
        stop, ended = threading.Event(), []
        loops = [threading.Thread(target=misbehave, args=(server, number, stop, ended)) for number in range(LOOPS)]
        for loop in loops:
            loop.start()
        time.sleep(5)
        beside = latencies(server, QUERIES)
        stop.set()
        for loop in loops:
            loop.join()
        for what, part in (("p50", 50), ("p99", 99)):
            before, now = (times[len(times) * part // 100] for times in (alone, beside))
            yield Figure(f"a notebook's query beside {LOOPS} loops of bombs, {what}", f"{now:.0f} ms", f"{before:.0f} ms alone on its share", now / before, "≤ 2" if part == 99 else "")
        yield Figure("queries of the good tenant that failed", f"0 of {QUERIES}", "")
        yield Figure("requests of the bad one meanwhile", f"{len(ended)}", "")


@contextlib.contextmanager
def elsewhere():
    """Clients are on other machines and have processors of their own: here they go before everything, and the node does not inherit that."""
    def schedule(policy, priority):
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    schedule(os.SCHED_RR, 1)
    try:
        yield
    finally:
        schedule(os.SCHED_OTHER, 0)


@contextlib.contextmanager
def two_tenants(**environment):
    with elsewhere(), node(TARN_ENGINE_MEMORY="1GB", **environment) as server:
        for tenant in ("good", "bad"):
            server.request("POST", "/v1/tenants", {"name": tenant}).close()
            server.create_mart(f"{tenant}/m")
        server.query(TABLE, "good/m")
        server.query("CREATE TABLE t AS SELECT 1 AS a", "bad/m")
        latencies(server, 50)
        yield server


def latencies(server, count):
    times = []
    for _ in range(count):
        start = time.perf_counter()
        server.query(QUERY, "good/m")
        times.append((time.perf_counter() - start) * 1000)
    return sorted(times)


def misbehave(server, number, stop, ended):
    with elsewhere():
        while not stop.is_set():
            try:
                server.query(mart="bad/m", timeout_ms=4000, **BAD[number % len(BAD)])
            except (Refused, urllib.error.URLError, OSError):
                # Killed, cancelled, restarting: what it asked for.
                time.sleep(0.05)
            ended.append(number)
            number += 1


def children(pid):
    lines = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for line in lines for child in line.split()]


def pss_mb(pid):
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0
