"""The ways to fetch a result as Arrow: one class each, `table` for the whole of it, `first` for as much as can be used at once.

A way is opened on a `Place`, so that a process of its own can open it too. All but `InProcess` go over TCP on loopback.
"""

import http.client
import json
import time
from dataclasses import dataclass

import duckdb
import pyarrow as pa

import data
import flightsql
import quack


@dataclass
class Place:
    """Where the servers are."""

    address: str
    token: str
    quack_port: int


class Http:
    """`POST …/query` by Python's own HTTP client, read by pyarrow."""

    def __init__(self, place):
        self.connection = http.client.HTTPConnection(place.address)
        self.headers = {
            "authorization": f"Bearer {place.token}",
            "content-type": "application/json",
            "accept": "application/vnd.apache.arrow.stream",
        }

    def open(self, sql):
        self.connection.request("POST", data.PATH, json.dumps({"sql": sql}), self.headers)
        answer = self.connection.getresponse()
        assert answer.status == 200, answer.read()
        return answer

    def table(self, sql):
        answer = self.open(sql)
        with pa.ipc.open_stream(Body(answer)) as stream:
            table = stream.read_all()
        # The connection is used again only when the last, empty piece is read too.
        answer.read()
        return table

    def first(self, sql):
        start = time.perf_counter()
        answer = self.open(sql)
        answer.read(1)
        seconds = time.perf_counter() - start
        answer.read()
        return seconds

    def close(self):
        self.connection.close()


class Body:
    """The answer's body as a file that fills the reader's own buffers: `http.client` alone joins its pieces with another copy."""

    closed = False

    def __init__(self, answer):
        self.answer = answer

    def read(self, size=-1):
        if size < 0:
            return self.answer.read()
        buffer = pa.allocate_buffer(size)
        view, filled = memoryview(buffer), 0
        while filled < size and (got := self.answer.readinto(view[filled:])):
            filled += got
        return buffer if filled == size else buffer.slice(0, filled)

    def readable(self):
        return True

    def close(self):
        self.closed = True


class Flight:
    """Flight SQL by `pyarrow.flight`: GetFlightInfo, then DoGet."""

    def __init__(self, place):
        self.client = flightsql.Client(place.address, place.token, data.MART)

    def table(self, sql):
        return self.client.read(sql)

    def first(self, sql):
        start = time.perf_counter()
        reader = self.client.get(self.client.info(flightsql.query(sql)).endpoints[0].ticket)
        reader.read_chunk()
        seconds = time.perf_counter() - start
        reader.read_all()
        return seconds

    def close(self):
        self.client.close()


class Adbc:
    """Flight SQL by the stock ADBC driver: it prepares first, and reads ahead."""

    def __init__(self, place):
        self.connection = adbc(place)
        self.cursor = self.connection.cursor()

    def table(self, sql):
        self.cursor.execute(sql)
        return self.cursor.fetch_arrow_table()

    def first(self, sql):
        start = time.perf_counter()
        self.cursor.execute(sql)
        reader = self.cursor.fetch_record_batch()
        reader.read_next_batch()
        seconds = time.perf_counter() - start
        reader.read_all()
        return seconds

    def close(self):
        self.cursor.close()
        self.connection.close()


def adbc(place, headers=()):
    import adbc_driver_flightsql.dbapi

    prefix = "adbc.flight.sql.rpc.call_header."
    options = {
        "adbc.flight.sql.authorization_header": f"Bearer {place.token}",
        f"{prefix}tarn-mart": data.MART,
        **{prefix + name: value for name, value in dict(headers).items()},
    }
    return adbc_driver_flightsql.dbapi.connect(f"grpc+tcp://{place.address}", db_kwargs=options, autocommit=True)


class InProcess:
    """DuckDB in the process of the reader, on a file of its own."""

    def __init__(self, _place):
        self.con = duckdb.connect(str(data.DATABASE), read_only=True)
        self.con.execute("SET enable_progress_bar = false")

    def asked(self, sql):
        return sql

    def table(self, sql):
        return self.con.execute(self.asked(sql)).to_arrow_table()

    def first(self, sql):
        start = time.perf_counter()
        reader = self.con.execute(self.asked(sql)).to_arrow_reader()
        reader.read_next_batch()
        seconds = time.perf_counter() - start
        reader.read_all()
        return seconds

    def close(self):
        self.con.close()


class Quack(InProcess):
    """DuckDB in the process of the reader, asking a remote DuckDB."""

    def __init__(self, place):
        self.con = quack.attach(place.quack_port)

    def asked(self, sql):
        return f"FROM q.query('{sql}')"


OURS = {"HTTP Arrow": Http, "Flight SQL, pyarrow": Flight, "Flight SQL, ADBC": Adbc}
PEERS = {"in-process": InProcess, "quack": Quack}
WAYS = OURS | PEERS
