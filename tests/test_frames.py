"""Data frames and other engines on a mart: Polars, pandas and DuckDB itself, each by the way that its own documentation shows.

`polars.read_database_uri` is left out: it names the driver by the scheme of the URI and has no place for a token.
"""

import gzip
import http.client
import json
import os
import subprocess
import sys

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from marts import ARROW, eventually
from test_seed import DAILY

FRAME = pl.DataFrame(
    {
        "id": [1, 2, 3],
        "name": ["one", None, "drei 🦆"],
        "share": [0.5, None, -1.25],
        "flag": [True, False, None],
        "tags": [["a"], [], None],
    }
).with_columns(day=pl.date(2024, 2, 29), at=pl.datetime(2024, 2, 29, 12, 30))

ARROW_TO_POLARS_OVER_FLIGHT = """\
import adbc_driver_flightsql.dbapi as flight_sql
import polars as pl

con = flight_sql.connect("grpc://ADDRESS", db_kwargs={
    "adbc.flight.sql.authorization_header": "Bearer TOKEN",
    "adbc.flight.sql.rpc.call_header.tarn-mart": "MART",
})
df = con.cursor().execute("SELECT * FROM metrics.daily LIMIT 100").fetch_arrow_table()
pl_df = pl.from_arrow(df)
"""


@pytest.fixture
def connection(mart):
    with mart.adbc(autocommit=False) as connection:
        yield connection


# --- Polars


def test_the_polars_sample_runs_over_flight(mart):
    """S17."""
    mart.query(DAILY)
    program = ARROW_TO_POLARS_OVER_FLIGHT.replace("ADDRESS", mart.server.address).replace("TOKEN", mart.token).replace("MART", mart.name)
    program += "assert pl_df.shape == (100, 4), pl_df.shape\n"
    # Nothing on the error stream either: the driver warns there about what a server lacks.
    # Under pytest the driver wants cursors closed, which Polars leaves to the connection.
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_polars_writes_a_frame_and_reads_it_back(mart, connection):
    assert FRAME.write_database("frames", connection, engine="adbc") == 3
    connection.commit()
    back = pl.read_database("SELECT * FROM frames ORDER BY id", connection)
    assert_frame_equal(back, FRAME)
    assert mart.rows("SELECT count(*) FROM frames") == [(3,)]


@pytest.mark.parametrize("mode, expected", [("append", 6), ("replace", 3)])
def test_polars_appends_and_replaces(connection, mode, expected):
    FRAME.write_database("frames", connection, engine="adbc")
    FRAME.write_database("frames", connection, engine="adbc", if_table_exists=mode)
    assert pl.read_database("SELECT count(*) AS n FROM frames", connection)["n"].to_list() == [expected]


def test_polars_does_not_write_over_a_table_unasked(connection):
    FRAME.write_database("frames", connection, engine="adbc")
    with pytest.raises(Exception, match="frames"):
        FRAME.write_database("frames", connection, engine="adbc", if_table_exists="fail")


def test_polars_writes_into_a_schema(mart, connection):
    mart.query("CREATE SCHEMA s")
    FRAME.write_database("s.frames", connection, engine="adbc")
    connection.commit()
    assert mart.rows("SELECT count(*) FROM s.frames") == [(3,)]


def test_polars_reads_with_parameters_and_in_batches(connection):
    got = pl.read_database("SELECT ? + 1 AS n", connection, execute_options={"parameters": [41]})
    assert got["n"].to_list() == [42]
    parts = pl.read_database("SELECT range AS n FROM range(500000)", connection, iter_batches=True, batch_size=100_000)
    assert sum(part["n"].sum() for part in parts) == 500_000 * 499_999 // 2


# --- pandas


def test_pandas_writes_a_frame_and_reads_it_back(mart, connection):
    frame = pd.DataFrame({"id": [1, 2, 3], "name": ["one", None, "three"], "share": [0.5, 1.5, None]})
    assert frame.to_sql("frames", connection, index=False) in (3, None)
    connection.commit()
    back = pd.read_sql("SELECT * FROM frames ORDER BY id", connection)
    assert back["id"].tolist() == [1, 2, 3] and back["share"].isna().tolist() == [False, False, True]
    assert back["name"].fillna("none").tolist() == ["one", "none", "three"]
    frame.to_sql("frames", connection, index=False, if_exists="append")
    assert pd.read_sql("SELECT count(*) AS n FROM frames", connection)["n"].tolist() == [6]
    frame.to_sql("frames", connection, index=False, if_exists="replace")
    assert pd.read_sql_table("frames", connection).shape == (3, 3)


def test_pandas_knows_whether_a_table_is_there(connection):
    from pandas.io.sql import pandasSQL_builder

    frame = pd.DataFrame({"id": [1]})
    frame.to_sql("frames", connection, index=False)
    assert pandasSQL_builder(connection).has_table("frames")
    with pytest.raises(ValueError, match="frames"):
        frame.to_sql("frames", connection, index=False, if_exists="fail")


# --- DuckDB


def opened(mart, sql):
    """The answer as it comes, for readers of streams."""
    connection = http.client.HTTPConnection(mart.server.address)
    headers = {"authorization": f"Bearer {mart.token}", "content-type": "application/json", "accept": ARROW}
    connection.request("POST", mart.path + "/query", json.dumps({"sql": sql}), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    return answer


def test_duckdb_queries_our_arrow_while_it_arrives_over_http(mart):
    with opened(mart, "SELECT range AS n, range % 7 AS g FROM range(1000000)") as answer:
        remote = pa.ipc.open_stream(answer)  # noqa: F841 (DuckDB finds it by name)
        got = duckdb.sql("SELECT g, count(*), sum(n) FROM remote GROUP BY g ORDER BY g").fetchall()
    assert got == duckdb.sql("SELECT range % 7 AS g, count(*), sum(range) FROM range(1000000) GROUP BY g ORDER BY g").fetchall()


def test_duckdb_queries_our_arrow_over_flight(mart):
    with mart.adbc() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT range AS n FROM range(1000000)")
        remote = cursor.fetch_record_batch()  # noqa: F841 (DuckDB finds it by name)
        assert duckdb.sql("SELECT count(*), sum(n) FROM remote").fetchall() == [(1_000_000, 1_000_000 * 999_999 // 2)]


def test_duckdb_reads_a_result_by_its_address(mart):
    """With its own `httpfs`: nothing but a URL and a secret that holds the token."""
    submitted = mart.json("POST", "/queries", {"sql": "SELECT range AS n, 'x' || range AS s FROM range(100000)"})
    address = f"http://{mart.server.address}/v1/queries/{submitted['id']}"
    eventually(lambda: mart.json("GET", f"/v1/queries/{submitted['id']}", base="")["state"] == "done", "the result")
    from served import ROOT

    with duckdb.connect() as con:
        con.execute(f"LOAD '{ROOT}/vendor/duckdb/ext/httpfs.duckdb_extension'")
        con.execute("SET force_download = true")
        headers = f"MAP {{'authorization': 'Bearer {mart.token}', 'accept': 'text/csv'}}"
        con.execute(f"CREATE SECRET (TYPE http, EXTRA_HTTP_HEADERS {headers}, SCOPE 'http://{mart.server.address}')")
        assert con.execute(f"SELECT count(*), sum(n), max(s) FROM read_csv('{address}/result')").fetchall() == [
            (100_000, 100_000 * 99_999 // 2, "x99999")
        ]


def test_duckdb_writes_to_a_mart_what_it_has(mart):
    rows = duckdb.sql("SELECT range AS n FROM range(100000)").to_arrow_table()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    body = gzip.compress(sink.getvalue().to_pybytes(), 1)
    assert mart.load("t", body, ARROW, headers={"content-encoding": "gzip"}) == {"rows": 100_000, "created": True}
    assert mart.rows("SELECT count(*), sum(n) FROM t") == [(100_000, 100_000 * 99_999 // 2)]
