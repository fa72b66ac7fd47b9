"""Results: `SELECT` over lineitem as an Arrow stream over HTTP, against DuckDB inside the Python process fetching the same table."""

import http.client
import json
import time

import duckdb
import pyarrow as pa

import data
from report import Figure

QUERIES = [
    ("all 16 columns", "SELECT * FROM lineitem", "≥ 0.4"),
    ("4 numeric columns", "SELECT l_orderkey, l_partkey, l_suppkey, l_linenumber FROM lineitem", "≥ 0.25"),
]
ROUNDS = 5


def prepare(server):
    sql = "CREATE TABLE IF NOT EXISTS lineitem AS FROM read_parquet('s3://sm-default-processed/tpch/lineitem.parquet')"
    server.query(sql, mart=data.MART, timeout_ms=600_000)


def measure(server):
    figures = []
    with duckdb.connect(str(data.DATABASE), read_only=True) as con:
        for name, sql, want in QUERIES:
            ours, peers = [], []
            # In turns, so that a busy moment of the machine hits both; the best of each counts.
            for _ in range(ROUNDS):
                peers.append(timed(lambda: con.execute(sql).to_arrow_table()))
                ours.append(timed(lambda: over_http(server, sql)))
            (our_seconds, our_bytes), (peer_seconds, peer_bytes) = min(ours), min(peers)
            figures.append(
                Figure(
                    f"{name}, 6.0M rows",
                    rate(our_seconds, our_bytes),
                    rate(peer_seconds, peer_bytes),
                    peer_seconds / our_seconds,
                    want,
                )
            )
    return [("Results as an Arrow stream; peer: DuckDB in the Python process", figures)]


def over_http(server, sql):
    connection = http.client.HTTPConnection(server.address)
    connection.request(
        "POST",
        data.PATH,
        json.dumps({"sql": sql}),
        {
            "authorization": f"Bearer {server.token}",
            "content-type": "application/json",
            "accept": "application/vnd.apache.arrow.stream",
        },
    )
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    with pa.ipc.open_stream(Body(answer)) as stream:
        table = stream.read_all()
    connection.close()
    return table


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


def timed(fetch):
    start = time.perf_counter()
    table = fetch()
    seconds = time.perf_counter() - start
    assert table.num_rows == data.ROWS
    return seconds, table.nbytes


def rate(seconds, size):
    return f"{data.ROWS / seconds / 1e6:.1f} Mrow/s, {size / seconds / 1e6:.0f} MB/s"
