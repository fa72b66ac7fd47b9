"""Where processor time goes: node, engine and client for each way out, in seconds per GB of Arrow, and the node's memory under slow readers.

From `/proc/PID/stat`, in ticks of 10 ms, so several transfers are summed. The kernel's part (sockets, copies) is in the process that made
the call. The client is this very process, so nothing else may run in it meanwhile.
"""

import os
import threading
import time
from pathlib import Path

import adbc_driver_manager

import data
import flight
import flightsql
from clients import OURS, Http, InProcess, adbc
from marts import FOREVER
from processes import cpu_seconds, engine_seconds, engines_work
from report import Figure

ROUNDS = 5
READERS = 32
WATCHED_SECONDS = 20


def measure(server):
    with flight.place(server) as where:
        yield shares(server, where)
        yield cancels(server, where)
        yield slow_readers(server, where)


def shares(server, where):
    figures = []
    for title, sql in flight.QUERIES.items():
        peer = spent(server, InProcess(where), sql)
        for name, way in OURS.items():
            ours = spent(server, way(where), sql)
            shown = ", ".join(f"{part} {seconds:.2f}" for part, seconds in ours.items())
            total = sum(ours.values())
            figures.append(Figure(f"{title}: {name}", f"{shown}: {total:.2f} s/GB", f"{peer['client']:.2f} s/GB", total / peer["client"]))
    return "Processor time per GB of Arrow; peer: DuckDB in the Python process", figures


def spent(server, way, sql):
    """Seconds of user and system time per GB, by process."""
    way.table(sql)
    before, size = usage(server), 0
    for _ in range(ROUNDS):
        size += way.table(sql).nbytes
    after = usage(server)
    way.close()
    return {part: (after[part] - before[part]) / size * 1e9 for part in after}


def usage(server):
    node = server.process.pid
    return {"node": cpu_seconds(node), "engine": engine_seconds(node), "client": cpu_seconds(os.getpid())}


def cancels(server, where):
    """From the driver's cancel to the moment when the engine's processor time stands still."""
    worst = max(cancel_seconds(server, where) for _ in range(ROUNDS))
    figure = Figure("ADBC, worst of 5", f"{worst * 1e3:.0f} ms", "200 ms", worst / 0.2, "≤ 1")
    return "Cancel until DuckDB has stopped; peer: the limit that was set", [figure]


def cancel_seconds(server, where):
    node = server.process.pid
    with adbc(where) as connection, connection.cursor() as cursor:
        runs = threading.Thread(target=lambda: run_until_cancelled(cursor))
        runs.start()
        while not engines_work(node):
            assert runs.is_alive()
        begin = last = time.monotonic()
        cursor.adbc_cancel()
        used, looked = engine_seconds(node), begin
        while looked < begin + 1:
            time.sleep(0.04)
            used_now, now = engine_seconds(node), time.monotonic()
            # Less than half a processor is no query: the kernel counts in ticks, and threads that look around take one now and then.
            if used_now - used > (now - looked) / 2:
                last = now
            used, looked = used_now, now
        runs.join()
        # As finely as it is looked: it stopped in the step behind the last one that it worked in.
        return last - begin + 0.04


def run_until_cancelled(cursor):
    try:
        cursor.execute(FOREVER)
        cursor.fetchall()
    except adbc_driver_manager.Error:
        return
    raise AssertionError("a query without end has ended")


def slow_readers(server, where):
    """32 clients that want 1 GB each and hardly read: the node may hold on to none of it."""
    done = threading.Event()
    start = resident_mb(server.process.pid)
    readers = [threading.Thread(target=(read_http if at % 2 else read_flight), args=(where, done)) for at in range(READERS)]
    for reader in readers:
        reader.start()
    most, end = start, time.monotonic() + WATCHED_SECONDS
    while time.monotonic() < end:
        most = max(most, resident_mb(server.process.pid))
        time.sleep(0.1)
    done.set()
    for reader in readers:
        reader.join()
    figure = Figure(f"Growth under {READERS} slow readers of 1 GB each", f"{most - start:.0f} MB", "50 MB", (most - start) / 50, "≤ 1")
    return "Resident memory of the node's process; peer: the limit that was set", [figure]


def read_http(where, done):
    way = Http(where)
    answer = way.open("SELECT * FROM lineitem")
    while not done.is_set():
        answer.read(64 << 10)
        done.wait(0.2)
    way.close()


def read_flight(where, done):
    with flightsql.Client(where.address, where.token, data.MART) as client:
        info = client.info(flightsql.query("SELECT * FROM lineitem"))
        reader = client.get(info.endpoints[0].ticket)
        reader.read_chunk()
        done.wait()
        reader.cancel()


def resident_mb(pid):
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024
