"""Loads: lineitem as Arrow in the memory of the client into a new table, over every way in, against DuckDB in the process and quack.

The wanted ratios are those of `local`: in-process DuckDB has no replica either. What `object` adds is shown beside it.
"""

import http.client
import json
import time

import duckdb

import data
import flight
import flightsql
import quack
from clients import adbc
from replication import mrows
from report import Figure

ROUNDS = 3
BATCH_ROWS = 65_536
CLIENTS = 32
OVER_PROCESS, OVER_QUACK = "≥ 0.8", "≥ 3"


def measure(server):
    with duckdb.connect(str(data.DATABASE), read_only=True) as con:
        table = con.execute("FROM lineitem").to_arrow_table()
    with flight.place(server) as where:
        ways = {
            "Flight SQL, ADBC": lambda name: by_adbc(where, table, name, "local"),
            "Flight SQL, pyarrow": lambda name: by_flight(where, table, name, "local"),
            "HTTP, Arrow": lambda name: by_http(where, table, name, "local"),
            "Flight SQL, pyarrow, `object`": lambda name: by_flight(where, table, name, "object"),
            "in-process": lambda _: in_process(server, table),
            "quack": lambda name: by_quack(where, table, name),
        }
        yield one_client(server, ways)
        yield many_clients(server, where, table.slice(0, data.ROWS // CLIENTS))


def one_client(server, ways):
    times = {way: [] for way in ways}
    for round_ in range(ROUNDS):
        for at, (way, load) in enumerate(ways.items()):
            name = f"load_{at}_{round_}"
            times[way].append(load(name))
            # `object`, the default: what this load left to be shipped is no part of the next one's time.
            server.query(f"DROP TABLE IF EXISTS {name}", mart=data.MART, timeout_ms=600_000)
    best = {way: min(taken) for way, taken in times.items()}
    figures = []
    for way in list(ways)[:4]:
        for peer, want in (("in-process", OVER_PROCESS), ("quack", OVER_QUACK)):
            want = "" if "object" in way or "HTTP" in way else want
            figures.append(Figure(f"{way}; {peer}", mrows(best[way]), mrows(best[peer]), best[peer] / best[way], want))
    return "Load of 6.0M rows of Arrow, one client; peers: DuckDB in the Python process, and quack", figures


def many_clients(server, where, part):
    """A 32nd of the rows each, at once, each into a table of its own."""
    ways = {
        "Flight SQL, pyarrow": lambda at: by_flight(where, part, f"part_{at}", "local"),
        "HTTP, Arrow": lambda at: by_http(where, part, f"part_{at}", "local"),
        "quack": lambda at: by_quack(where, part, f"part_{at}"),
    }
    taken = {}
    for way, load in ways.items():
        start = time.perf_counter()
        with flight.ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(load, range(CLIENTS)))
        taken[way] = time.perf_counter() - start
        for at in range(CLIENTS):
            server.query(f"DROP TABLE IF EXISTS part_{at}", mart=data.MART)
    figures = [
        Figure(f"{way}; quack", mrows(taken[way]), mrows(taken["quack"]), taken["quack"] / taken[way]) for way in list(ways)[:2]
    ]
    return f"Load of 6.0M rows of Arrow by {CLIENTS} clients", figures


def in_process(server, rows):
    path = server.root / "peer.db"
    try:
        with duckdb.connect(str(path)) as con:
            con.execute("SET enable_progress_bar = false")
            con.register("rows", rows)
            con.execute("CREATE TABLE loaded AS FROM rows LIMIT 0")
            return flight.timed(lambda: con.execute("INSERT INTO loaded SELECT * FROM rows"))
    finally:
        path.unlink()


def by_quack(where, rows, name):
    with quack.attach(where.quack_port) as con:
        con.register("rows", rows)
        con.execute(f"CREATE TABLE q.main.{name} AS FROM rows LIMIT 0")
        seconds = flight.timed(lambda: con.execute(f"INSERT INTO q.main.{name} SELECT * FROM rows"))
        con.execute(f"DROP TABLE q.main.{name}")
        return seconds


def by_adbc(where, table, name, durability):
    with adbc(where, {"tarn-durability": durability}) as connection, connection.cursor() as cursor:
        return flight.timed(lambda: counted(cursor.adbc_ingest(name, table.to_reader(max_chunksize=BATCH_ROWS), mode="create"), table))


def by_flight(where, table, name, durability):
    with flightsql.Client(where.address, where.token, data.MART, {"tarn-durability": durability}) as client:
        batches = table.to_batches(max_chunksize=BATCH_ROWS)
        return flight.timed(lambda: counted(client.put(flightsql.ingest(name), batches, table.schema), table))


def by_http(where, table, name, durability):
    """Encoded piece by piece while it is sent."""
    connection = http.client.HTTPConnection(where.address)

    def load():
        path = f"{data.PATH.removesuffix('/query')}/tables/main/{name}?mode=create&durability={durability}"
        headers = {
            "authorization": f"Bearer {where.token}",
            "content-type": "application/vnd.apache.arrow.stream",
            "transfer-encoding": "chunked",
        }
        connection.putrequest("PUT", path)
        for header, value in headers.items():
            connection.putheader(header, value)
        connection.endheaders()
        for piece in encoded(table):
            connection.send(f"{len(piece):X}\r\n".encode())
            connection.send(piece)
            connection.send(b"\r\n")
        connection.send(b"0\r\n\r\n")
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        counted(json.loads(body)["rows"], table)

    try:
        return flight.timed(load)
    finally:
        connection.close()


def encoded(table):
    """An Arrow IPC stream, a message at a time."""
    yield table.schema.serialize()
    for batch in table.to_batches(max_chunksize=BATCH_ROWS):
        yield batch.serialize()
    yield b"\xff\xff\xff\xff\x00\x00\x00\x00"


def counted(rows, table):
    assert rows == table.num_rows, rows
