"""Frames out of a mart and into it, over Arrow Flight SQL, against the real server; and out of its published file."""

import datetime

import adbc_driver_manager
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from polars.testing import assert_frame_equal

from analytics import ConfigError, Settings, connect, duckdb_dsn, read_arrow, read_pandas, read_polars, write_arrow
from analytics.pieces import pieces
from marts import FOREVER, Mart
from served import DATA, ROOT, Server
from test_seed import DAILY, wait_for_published

FRAME = pl.DataFrame({"id": [1, 2, 3], "name": ["one", None, "drei 🦆"], "tags": [["a"], [], None]}).with_columns(
    day=pl.date(2024, 2, 29), at=pl.datetime(2024, 2, 29, 12, 30, time_zone="UTC")
)


# --- Connections


def test_the_environment_leads_to_the_mart(named):
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t AS SELECT 42 AS a")
        cursor.execute("SELECT a + ? FROM t", [1])
        assert cursor.fetchall() == [(43,)]
    assert named.rows("FROM t") == [(42,)]


def test_a_transaction_is_there_for_others_after_its_commit(named):
    with connect(autocommit=False) as connection:
        assert write_arrow(pa.table({"a": [1, 2]}), "t", source=connection) == 2
        assert read_arrow("SELECT count(*) AS n FROM t", source=connection)["n"].to_pylist() == [2]
        assert not named.exists("t")
        connection.commit()
    assert named.rows("SELECT sum(a) FROM t") == [(3,)]


def test_a_node_on_this_machine_needs_no_token_in_the_environment(tmp_path, monkeypatch):
    server = Server(tmp_path)
    server.token = None
    server.start()
    try:
        monkeypatch.setenv("TARN_STATE_DIR", str(server.state))
        assert read_arrow("SELECT 1 AS a", source=f"tarn://{server.address}/default/dev").to_pydict() == {"a": [1]}
    finally:
        server.stop()


def test_a_dsn_may_name_an_earlier_moment(named):
    named.query("CREATE TABLE t AS SELECT 1 AS a")
    named.json("POST", "/snapshots", {"name": "before"})
    named.query("UPDATE t SET a = 2")
    dsn = f"tarn://{named.token}@{named.server.address}/{named.name}"
    assert read_arrow("FROM t", source=dsn)["a"].to_pylist() == [2]
    assert read_arrow("FROM t", source=f"{dsn}?at=before")["a"].to_pylist() == [1]


def test_profile_durability_and_deadline_reach_the_server(named):
    dsn = f"tarn://{named.server.address}/{named.name}"
    with pytest.raises(adbc_driver_manager.Error, match="(?i)profile"):
        read_arrow("SELECT 1", source=f"{dsn}?profile=nosuchprofile")
    with connect(dsn, durability="local") as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a INTEGER)")
    with connect(dsn, durability="never") as connection, pytest.raises(adbc_driver_manager.Error, match="(?i)durability"):
        read_arrow("SELECT 1", source=connection)
    with connect(dsn, timeout_ms=200) as connection, pytest.raises(adbc_driver_manager.Error, match="(?i)time|deadline"):
        read_arrow(FOREVER, source=connection)


def test_a_wrong_token_is_an_error_of_the_driver(named):
    with pytest.raises(adbc_driver_manager.Error) as told:
        read_arrow("SELECT 1", source=f"tarn://unheard-of@{named.server.address}/{named.name}")
    assert told.value.status_code == adbc_driver_manager.AdbcStatusCode.UNAUTHENTICATED
    assert "unheard-of" not in str(told.value)


# --- Reads


def test_results_keep_their_types_and_duckdbs_names_of_them(named):
    table = read_arrow("SELECT uuid() AS u, 1::HUGEINT AS h, TIMESTAMPTZ '2024-02-29 12:00:00+02' AS t")
    names = {field.name: field.metadata[b"tarn.duckdb_type"].decode() for field in table.schema}
    assert names == {"u": "UUID", "h": "HUGEINT", "t": "TIMESTAMP WITH TIME ZONE"}
    assert table["t"].to_pylist() == [datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.timezone.utc)]


def test_parameters_go_with_each_kind_of_frame(named):
    assert read_arrow("SELECT ? AS a", [7])["a"].to_pylist() == [7]
    expected = pl.DataFrame({"a": [7], "b": [None]}, schema={"a": pl.Int64, "b": pl.String})
    assert_frame_equal(read_polars("SELECT ? AS a, NULL::VARCHAR AS b", [7]), expected)
    assert read_pandas("SELECT $1 AS a, $2 AS b", ["x", 1.5]).to_dict("list") == {"a": ["x"], "b": [1.5]}


def test_large_results_arrive_whole(named):
    table = read_arrow("SELECT range AS i, repeat('x', 30000) AS s FROM range(2000)")
    assert table["i"].to_pylist() == list(range(2000))
    # A single row over the driver's own limit of 16 MB.
    assert len(read_arrow("SELECT repeat('x', 20000000) AS s")["s"][0].as_py()) == 20_000_000


def test_a_read_that_fails_in_its_middle_is_an_error(named):
    with pytest.raises(adbc_driver_manager.Error, match="boom"):
        read_arrow("SELECT CASE WHEN range = 3000000 THEN error('boom') ELSE range END AS a FROM range(4000000)")


# --- Writes


@pytest.mark.parametrize(
    "data",
    [
        FRAME,
        FRAME.to_arrow(),
        FRAME.to_arrow().to_reader(),
        FRAME.to_arrow().combine_chunks().to_batches()[0],
        FRAME.to_arrow().to_pandas(),
    ],
    ids=["polars", "table", "reader", "batch", "pandas"],
)
def test_a_frame_is_written_and_read_back(named, data):
    assert write_arrow(data, "frames") == 3
    back = read_polars("SELECT * FROM frames ORDER BY id")
    if not isinstance(data, pd.DataFrame):
        assert_frame_equal(back, FRAME)
    assert back["name"].to_list() == ["one", None, "drei 🦆"]


def test_a_relation_of_duckdb_is_written(named):
    assert write_arrow(duckdb.sql("SELECT range AS n FROM range(300000)"), "numbers") == 300_000
    assert named.rows("SELECT count(*), sum(n) FROM numbers") == [(300_000, 300_000 * 299_999 // 2)]


@pytest.mark.parametrize("mode, expected", [("append", 6), ("replace", 3), ("create_append", 6)])
def test_what_happens_to_a_table_that_is_there(named, mode, expected):
    write_arrow(FRAME, "frames")
    assert write_arrow(FRAME, "frames", mode=mode) == 3
    assert named.rows("SELECT count(*) FROM frames") == [(expected,)]


def test_a_table_is_not_written_over_unasked(named):
    write_arrow(FRAME, "frames")
    with pytest.raises(adbc_driver_manager.Error, match="frames"):
        write_arrow(FRAME, "frames")
    with pytest.raises(adbc_driver_manager.Error, match="missing"):
        write_arrow(FRAME, "missing", mode="append")


def test_a_table_goes_into_a_schema(named):
    named.query("CREATE SCHEMA metrics")
    write_arrow(FRAME, "frames", schema="metrics")
    assert named.rows("SELECT count(*) FROM metrics.frames") == [(3,)]


@pytest.mark.parametrize("data", [FRAME.clear(), FRAME.clear().to_arrow(), pa.schema([("id", pa.int64())]).empty_table()])
def test_a_frame_without_rows_makes_its_table(named, data):
    assert write_arrow(data, "frames") == 0
    assert named.rows("SELECT count(id) FROM frames") == [(0,)]


def test_batches_over_the_limit_of_a_message_are_sent_in_pieces(named):
    # One batch of 100 MB, of which one row is 20 MB.
    texts = pa.array(["x" * 20_000_000, *(["y" * 10_000] * 8000)])
    assert write_arrow(pa.table({"s": texts}), "texts") == 8001
    assert named.rows("SELECT max(length(s)), count(*), sum(length(s)) FROM texts") == [(20_000_000, 8001, 100_000_000)]


def test_nothing_of_a_load_that_breaks_off_is_there(named):
    schema = pa.schema([("a", pa.int64())])

    def broken():
        yield pa.record_batch({"a": list(range(1000))}, schema=schema)
        raise RuntimeError("the source has ended early")

    with pytest.raises(Exception, match="ended early"):
        write_arrow(pa.RecordBatchReader.from_batches(schema, broken()), "t")
    assert not named.exists("t")


def test_a_reader_may_not_write(named, monkeypatch):
    monkeypatch.setenv("TARN_TOKEN", named.token_of("reader"))
    assert read_arrow("SELECT 1 AS a").num_rows == 1
    with pytest.raises(adbc_driver_manager.Error) as told:
        write_arrow(FRAME, "frames")
    assert told.value.status_code == adbc_driver_manager.AdbcStatusCode.UNAUTHORIZED


def test_what_is_no_arrow_is_refused(named):
    with pytest.raises(TypeError, match="list"):
        write_arrow([1, 2], "t")


def test_pieces_keep_rows_and_order():
    batches = [pa.record_batch({"n": list(range(start, start + 1000)), "s": ["x" * (start % 97)] * 1000}) for start in (0, 1000, 2000)]
    reader = pa.RecordBatchReader.from_batches(batches[0].schema, batches)
    got = list(pieces(reader, limit_bytes=5000))
    assert [n for piece in got for n in piece["n"].to_pylist()] == list(range(3000))
    assert len(got) > 3 and all(piece.num_rows and piece.nbytes <= 5000 for piece in got)


def test_a_large_dictionary_does_not_take_a_batch_apart():
    words = pa.array([f"word {n}" for n in range(10_000)]).dictionary_encode()
    batch = pa.record_batch({"w": words})
    assert len(list(pieces(pa.RecordBatchReader.from_batches(batch.schema, [batch]), limit_bytes=50_000))) == 1


# --- Files


def test_a_published_file_is_read_as_the_mart_is(node, monkeypatch):
    monkeypatch.setenv("TARN_STATE_DIR", str(node.state))
    dev = Mart(node, "default/dev")
    dev.query("DROP SCHEMA IF EXISTS metrics CASCADE;" + DAILY)
    try:
        wait_for_published(node, "SELECT count(*) FROM metrics.daily", lambda count: count > 0)
        sql = "SELECT *, day::TIMESTAMPTZ AS at FROM metrics.daily WHERE carrier = ? ORDER BY day"
        mart = f"tarn://{node.token}@{node.address}/default/dev"
        assert_frame_equal(read_polars(sql, ["HA"], source=duckdb_dsn()), read_polars(sql, ["HA"], source=mart))
        with pytest.raises(duckdb.InvalidInputException, match="read-only"):
            read_arrow("CREATE TABLE t (a INTEGER)", source=duckdb_dsn())
        with pytest.raises(ConfigError, match="mart"):
            write_arrow(FRAME, "frames", source=duckdb_dsn())
    finally:
        dev.query("DROP SCHEMA metrics CASCADE")


def test_a_connection_of_duckdb_is_left_open():
    with duckdb.connect() as con:
        con.execute("CREATE TEMP TABLE t AS SELECT 1 AS a")
        assert read_pandas("FROM t", source=con)["a"].tolist() == [1]
        assert con.execute("FROM t").fetchall() == [(1,)]


def test_a_source_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="tarn://"):
        read_arrow("SELECT 1", source="postgres://host/db")


def test_the_object_store_is_read_by_a_duckdb_of_ones_own(weed, monkeypatch):
    for name, value in weed.environment().items():
        monkeypatch.setenv(name, value)
    weed.client().upload_file(str(next((DATA / "metrics").glob("*.parquet"))), "sm-default-processed", "metrics/a.parquet")
    with duckdb.connect() as con:
        con.execute(f"LOAD '{ROOT}/vendor/duckdb/ext/httpfs.duckdb_extension'")
        Settings.load().s3.create_secret(con)
        assert read_arrow("FROM read_parquet('s3://sm-default-processed/metrics/*.parquet')", source=con).num_rows > 100
