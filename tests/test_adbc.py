"""The stock ADBC driver for Flight SQL, by its Python DB-API: what an analyst's tools do with a mart without knowing that it is one."""

import datetime
import threading
import warnings
from decimal import Decimal

import adbc_driver_manager
import pyarrow as pa
import pytest
from adbc_driver_manager.dbapi import IntegrityError, OperationalError, ProgrammingError

from marts import FOREVER, Mart

FLIGHTS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["one", None, "three"]})


@pytest.fixture
def connection(mart):
    with mart.adbc() as connection:
        yield connection


@pytest.fixture
def cursor(connection):
    with connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def manual(mart):
    """As `dbapi.connect` opens it by default: autocommit off."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "Cannot disable autocommit" is a failure
        with mart.adbc(autocommit=False) as connection:
            yield connection


def ask(connection, sql, parameters=None):
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchall()


# --- Statements


def test_definitions_take_effect_without_a_fetch(cursor, mart):
    cursor.execute("CREATE TABLE t (a INTEGER)")
    assert mart.exists("t")
    cursor.execute("DROP TABLE t")
    assert not mart.exists("t")


@pytest.mark.parametrize("fetch", [False, True])
def test_a_write_runs_exactly_once_fetched_or_not(cursor, mart, fetch):
    cursor.execute("CREATE TABLE t (a INTEGER)")
    cursor.execute("INSERT INTO t VALUES (1), (2)")
    if fetch:
        assert cursor.fetchall() == [(2,)]
    assert mart.rows("SELECT a FROM t ORDER BY a") == [(1,), (2,)]


def test_executing_the_same_text_again_runs_it_again(cursor, mart):
    cursor.execute("CREATE TABLE t (a INTEGER)")
    for _ in range(3):
        cursor.execute("INSERT INTO t VALUES (1)")
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


def test_row_counts_are_those_of_changed_rows(cursor):
    cursor.execute("CREATE TABLE t AS SELECT range AS a FROM range(10)")
    cursor.execute("INSERT INTO t VALUES (10), (11)")
    assert cursor.rowcount == 2
    cursor.execute("UPDATE t SET a = -a WHERE a < 5")
    assert cursor.rowcount == 5
    cursor.execute("DELETE FROM t")
    assert cursor.rowcount == 12
    cursor.execute("DELETE FROM t")
    assert cursor.rowcount == 0


def test_returning_gives_the_rows_of_the_write(cursor, mart):
    cursor.execute("CREATE TABLE t (a INTEGER, b INTEGER DEFAULT 7)")
    cursor.execute("INSERT INTO t (a) VALUES (1) RETURNING a, b")
    assert cursor.fetchall() == [(1, 7)]
    assert mart.rows("SELECT count(*) FROM t") == [(1,)]


def test_big_results_arrive_whole(cursor):
    # Strings of 30 KB: batches of a fixed number of rows would be over the driver's 16 MiB per message.
    cursor.execute("SELECT range AS i, repeat('x', 30000) AS s FROM range(3000)")
    table = cursor.fetch_arrow_table()
    assert table.num_rows == 3000
    assert table["i"].to_pylist() == list(range(3000))
    assert set(map(len, table["s"].to_pylist())) == {30000}


def test_a_read_that_fails_in_its_middle_is_an_error_not_a_short_result(cursor):
    with pytest.raises(adbc_driver_manager.Error, match="boom"):
        cursor.execute("SELECT CASE WHEN range = 3000000 THEN error('boom') ELSE range END AS a FROM range(4000000)")
        cursor.fetch_arrow_table()


def test_an_unread_result_does_not_block_the_connection(connection):
    with connection.cursor() as unread:
        unread.execute("SELECT range, repeat('x', 100) FROM range(5000000)")
        assert unread.fetchone()[0] == 0
        assert ask(connection, "SELECT 42") == [(42,)]
        assert unread.fetchone()[0] == 1


# --- Types

TYPES = [
    ("BOOLEAN", "true", pa.bool_(), True),
    ("TINYINT", "-128", pa.int8(), -128),
    ("SMALLINT", "-32768", pa.int16(), -32768),
    ("INTEGER", "-2147483648", pa.int32(), -2147483648),
    ("BIGINT", "-9223372036854775808", pa.int64(), -(2**63)),
    ("UTINYINT", "255", pa.uint8(), 255),
    ("USMALLINT", "65535", pa.uint16(), 65535),
    ("UINTEGER", "4294967295", pa.uint32(), 2**32 - 1),
    ("UBIGINT", "18446744073709551615", pa.uint64(), 2**64 - 1),
    ("HUGEINT", "12345678901234567890123456789", pa.decimal128(38, 0), Decimal("12345678901234567890123456789")),
    ("UHUGEINT", "12345678901234567890123456789", pa.decimal128(38, 0), Decimal("12345678901234567890123456789")),
    ("FLOAT", "1.5", pa.float32(), 1.5),
    ("DOUBLE", "0.1", pa.float64(), 0.1),
    ("DECIMAL(4,1)", "123.4", pa.decimal128(4, 1), Decimal("123.4")),
    ("DECIMAL(18,3)", "-1.500", pa.decimal128(18, 3), Decimal("-1.500")),
    ("DECIMAL(38,10)", "1234567890.0123456789", pa.decimal128(38, 10), Decimal("1234567890.0123456789")),
    ("VARCHAR", "'grüße 🦆'", pa.string(), "grüße 🦆"),
    ("BLOB", r"'\x00\xFF'", pa.binary(), b"\x00\xff"),
    ("BIT", "'0101'", pa.string(), "0101"),
    ("UUID", "'00112233-4455-6677-8899-aabbccddeeff'", pa.string(), "00112233-4455-6677-8899-aabbccddeeff"),
    ("JSON", """'{"a": [1, null]}'""", pa.string(), '{"a": [1, null]}'),
    ("DATE", "'2024-02-29'", pa.date32(), datetime.date(2024, 2, 29)),
    ("TIME", "'12:34:56.789'", pa.time64("us"), datetime.time(12, 34, 56, 789000)),
    ("TIMETZ", "'12:34:56+01'", pa.string(), "12:34:56+01"),
    ("TIMESTAMP", "'2024-02-29 12:00:00.123456'", pa.timestamp("us"), datetime.datetime(2024, 2, 29, 12, 0, 0, 123456)),
    ("TIMESTAMP_S", "'2024-02-29 12:00:00'", pa.timestamp("s"), datetime.datetime(2024, 2, 29, 12)),
    ("TIMESTAMP_MS", "'2024-02-29 12:00:00.5'", pa.timestamp("ms"), datetime.datetime(2024, 2, 29, 12, 0, 0, 500000)),
    (
        "TIMESTAMPTZ",
        "'2024-02-29 12:00:00+02'",
        pa.timestamp("us", "UTC"),
        datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.timezone.utc),
    ),
    ("INTERVAL", "INTERVAL '14 months 3 days 4 seconds'", pa.month_day_nano_interval(), pa.MonthDayNano([14, 3, 4_000_000_000])),
    ("INTEGER[]", "[1, NULL, 3]", pa.list_(pa.int32()), [1, None, 3]),
    ("INTEGER[2]", "[1, 2]", pa.list_(pa.int32(), 2), [1, 2]),
    ("STRUCT(a INTEGER, b VARCHAR[])", "{'a': 1, 'b': ['x']}", None, {"a": 1, "b": ["x"]}),
    ("MAP(VARCHAR, INTEGER)", "MAP {'k': 1}", pa.map_(pa.string(), pa.int32()), [("k", 1)]),
    ("ENUM('low', 'high')", "'high'", None, "high"),
]
# Read by the driver, but not sent back by it.
READ_ONLY = [
    ("TIMESTAMP_NS", "'2024-02-29 12:00:00.123456789'", pa.timestamp("ns")),
    ("UNION(n INTEGER, s VARCHAR)", "union_value(s := 'x')", None),
]


@pytest.mark.parametrize("name, literal, arrow, value", TYPES, ids=[name for name, *_ in TYPES])
def test_a_value_goes_out_and_comes_back_as_it_was(cursor, mart, name, literal, arrow, value):
    cursor.execute(f"CREATE TABLE t (v {name})")
    cursor.execute(f"INSERT INTO t VALUES ({literal}), (NULL)")
    cursor.execute("SELECT v FROM t")
    table = cursor.fetch_arrow_table()
    if arrow is not None:
        assert plain(table.schema.field("v").type) == plain(arrow)
    assert table["v"].to_pylist() == [value, None]
    cursor.adbc_ingest("t", table, mode="append")
    assert mart.rows("SELECT count(*), count(v), count(DISTINCT v::VARCHAR), max(typeof(v)) = min(typeof(v)) FROM t") == [(4, 2, 1, True)]


@pytest.mark.parametrize("name, literal, arrow", READ_ONLY, ids=[name for name, *_ in READ_ONLY])
def test_a_value_can_be_read(cursor, name, literal, arrow):
    cursor.execute(f"SELECT {literal}::{name} AS v")
    table = cursor.fetch_arrow_table()
    assert arrow is None or table.schema.field("v").type == arrow
    assert table.num_rows == 1


def plain(arrow):
    """Without the names of inner fields, which Arrow libraries choose as they like."""
    if pa.types.is_fixed_size_list(arrow):
        return "fixed", arrow.list_size, plain(arrow.value_type)
    if pa.types.is_map(arrow):
        return "map", plain(arrow.key_type), plain(arrow.item_type)
    if pa.types.is_list(arrow):
        return "list", plain(arrow.value_type)
    return arrow


def test_columns_tell_their_duckdb_type(mart):
    with mart.flight() as client:
        field = client.read("SELECT 1::HUGEINT AS h").schema.field("h")
    assert field.metadata[b"tarn.duckdb_type"] == b"HUGEINT"


# --- Parameters


def test_parameters_are_bound_by_place(cursor):
    cursor.execute("SELECT $2::VARCHAR || $1::VARCHAR, $3::INTEGER", ("a", "b", 7))
    assert cursor.fetchall() == [("ba", 7)]
    cursor.execute("SELECT ? + ?", (1, 2))
    assert cursor.fetchall() == [(3,)]


@pytest.mark.parametrize("value", [None, True, 7, 2**40, 0.5, "text", b"\x00\xff", datetime.date(2024, 2, 29), Decimal("1.25")])
def test_python_values_are_parameters(cursor, value):
    cursor.execute("CREATE TABLE t AS SELECT ? AS v", (value,))
    cursor.execute("SELECT v FROM t")
    ((got,),) = cursor.fetchall()
    assert got == value


def test_a_write_with_parameters_runs_once(cursor, mart):
    cursor.execute("CREATE TABLE t (a INTEGER, b VARCHAR)")
    cursor.execute("INSERT INTO t VALUES (?, ?)", (1, "x"))
    assert cursor.rowcount == 1
    assert mart.rows("SELECT * FROM t") == [(1, "x")]


def test_executemany_writes_all_rows_or_none(cursor, mart):
    cursor.execute("CREATE TABLE t (a INTEGER PRIMARY KEY, b VARCHAR)")
    cursor.executemany("INSERT INTO t VALUES (?, ?)", [(n, str(n)) for n in range(1000)])
    assert cursor.rowcount == 1000
    with pytest.raises(adbc_driver_manager.Error, match="[Dd]uplicate|constraint"):
        cursor.executemany("INSERT INTO t VALUES (?, ?)", [(1000, "new"), (1, "twice")])
    assert mart.rows("SELECT count(*), sum(a) FROM t") == [(1000, 499500)]


def test_too_few_parameters_are_an_error(cursor):
    with pytest.raises(adbc_driver_manager.Error):
        cursor.execute("SELECT ? + ?", (1,))
        cursor.fetchall()


def test_preparing_runs_nothing(cursor, mart):
    cursor.execute("CREATE TABLE t (a INTEGER)")
    parameters = cursor.adbc_prepare("INSERT INTO t VALUES (?)")
    assert len(parameters) == 1
    cursor.adbc_prepare("DROP TABLE t")
    assert cursor.adbc_execute_schema("SELECT a, a::VARCHAR AS b FROM t") == pa.schema([("a", pa.int32()), ("b", pa.string())])
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]


# --- Ingest


def test_ingest_creates_appends_and_replaces(cursor, mart):
    assert cursor.adbc_ingest("t", FLIGHTS, mode="create") == 3
    assert cursor.adbc_ingest("t", FLIGHTS, mode="append") == 3
    assert mart.rows("SELECT count(*), count(name) FROM t") == [(6, 4)]
    assert cursor.adbc_ingest("t", FLIGHTS.select(["id"]), mode="replace") == 3
    assert mart.rows("SELECT * FROM t ORDER BY id") == [(1,), (2,), (3,)]


def test_ingest_creates_or_appends(cursor, mart):
    for expected in (3, 6):
        assert cursor.adbc_ingest("t", FLIGHTS, mode="create_append") == 3
        assert mart.rows("SELECT count(*) FROM t") == [(expected,)]


def test_ingest_into_a_table_that_is_there_or_is_not_is_refused_as_asked(cursor, mart):
    with pytest.raises((ProgrammingError, IntegrityError), match="missing"):
        cursor.adbc_ingest("missing", FLIGHTS, mode="append")
    cursor.adbc_ingest("t", FLIGHTS, mode="create")
    with pytest.raises((ProgrammingError, IntegrityError), match="`?t`?"):
        cursor.adbc_ingest("t", FLIGHTS, mode="create")
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


def test_ingest_into_a_schema_and_catalog(cursor, mart):
    cursor.execute("CREATE SCHEMA s")
    cursor.adbc_ingest("t", FLIGHTS, mode="create", catalog_name="mart", db_schema_name="s")
    assert mart.rows("SELECT count(*) FROM s.t") == [(3,)]


def test_ingest_takes_many_batches(cursor, mart):
    batches = pa.RecordBatchReader.from_batches(
        pa.schema([("a", pa.int64())]), (pa.record_batch([pa.array(range(n * 1000, n * 1000 + 1000))], ["a"]) for n in range(200))
    )
    assert cursor.adbc_ingest("t", batches, mode="create") == 200_000
    assert mart.rows("SELECT count(*), sum(a) FROM t") == [(200_000, 200_000 * 199_999 // 2)]


def test_temporary_tables_live_on_one_connection(mart, connection):
    with connection.cursor() as cursor:
        cursor.adbc_ingest("mine", FLIGHTS, mode="create", temporary=True)
        cursor.execute("CREATE TEMP TABLE mine_too AS SELECT 1 AS a")
    assert ask(connection, "SELECT count(*) FROM mine, mine_too") == [(3,)]
    with mart.adbc() as other, pytest.raises(ProgrammingError, match="mine"):
        ask(other, "SELECT * FROM mine")
    connection.close()
    with mart.adbc() as again, pytest.raises(ProgrammingError, match="mine"):
        ask(again, "SELECT * FROM mine")


# --- Transactions


def test_nothing_is_seen_before_the_commit_and_all_of_it_after(mart, manual):
    ask(manual, "CREATE TABLE t (a INTEGER)")
    ask(manual, "INSERT INTO t VALUES (1), (2)")
    assert ask(manual, "SELECT count(*) FROM t") == [(2,)]
    assert not mart.exists("t")
    manual.commit()
    assert mart.rows("SELECT a FROM t ORDER BY a") == [(1,), (2,)]


def test_a_rollback_leaves_nothing(mart, manual):
    ask(manual, "CREATE TABLE t (a INTEGER)")
    manual.commit()
    ask(manual, "INSERT INTO t VALUES (1)")
    with manual.cursor() as cursor:
        cursor.adbc_ingest("t", pa.table({"a": pa.array([2, 3], pa.int32())}), mode="append")
        cursor.executemany("INSERT INTO t VALUES (?)", [(4,), (5,)])
    assert ask(manual, "SELECT count(*) FROM t") == [(5,)]
    manual.rollback()
    assert ask(manual, "SELECT count(*) FROM t") == [(0,)]
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]


def test_closing_a_connection_rolls_back_what_it_did_not_commit(mart):
    mart.query("CREATE TABLE t (a INTEGER)")
    connection = mart.adbc(autocommit=False)
    ask(connection, "INSERT INTO t VALUES (1)")
    connection.close()
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]


def test_a_cursor_goes_on_after_a_commit(mart, manual):
    with manual.cursor() as cursor:
        cursor.execute("CREATE TABLE t (a INTEGER)")
        for _ in range(3):
            # The driver prepares the text once; its handle outlives the transaction that it was made in.
            cursor.execute("INSERT INTO t VALUES (1)")
            manual.commit()
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


def test_a_transaction_reads_one_moment(mart, manual):
    mart.query("CREATE TABLE t (a INTEGER)")
    assert ask(manual, "SELECT count(*) FROM t") == [(0,)]
    mart.query("INSERT INTO t VALUES (1)")
    assert ask(manual, "SELECT count(*) FROM t") == [(0,)]
    manual.rollback()
    assert ask(manual, "SELECT count(*) FROM t") == [(1,)]


def test_an_error_in_a_transaction_can_be_rolled_back(mart, manual):
    ask(manual, "CREATE TABLE t (a INTEGER PRIMARY KEY)")
    manual.commit()
    ask(manual, "INSERT INTO t VALUES (1)")
    with pytest.raises(adbc_driver_manager.Error):
        ask(manual, "INSERT INTO t VALUES (1)")
    manual.rollback()
    ask(manual, "INSERT INTO t VALUES (2)")
    manual.commit()
    assert mart.rows("SELECT a FROM t") == [(2,)]


def test_a_conflict_between_two_transactions_is_told(mart):
    mart.query("CREATE TABLE t AS SELECT 1 AS a")
    with mart.adbc(autocommit=False) as one, mart.adbc(autocommit=False) as two:
        ask(one, "UPDATE t SET a = 2")
        with pytest.raises(adbc_driver_manager.Error, match="[Cc]onflict"):
            ask(two, "UPDATE t SET a = 3")
            two.commit()
        two.rollback()
        one.commit()
    assert mart.rows("SELECT a FROM t") == [(2,)]


def test_turning_autocommit_on_commits(mart, manual):
    ask(manual, "CREATE TABLE t (a INTEGER)")
    manual.adbc_connection.set_autocommit(True)
    assert mart.exists("t")
    ask(manual, "INSERT INTO t VALUES (1)")
    assert mart.rows("SELECT count(*) FROM t") == [(1,)]


# --- Metadata


@pytest.fixture
def furnished(mart):
    mart.query("CREATE SCHEMA sales")
    mart.query("CREATE TABLE sales.orders (id BIGINT PRIMARY KEY, amount DECIMAL(10,2), placed TIMESTAMP)")
    mart.query("CREATE TABLE under_score (a INTEGER)")
    mart.query("CREATE TABLE underXscore (b INTEGER)")
    mart.query("CREATE VIEW big AS SELECT * FROM sales.orders WHERE amount > 100")
    return mart


def objects(connection, **filters):
    """`{schema: {table: [column, …]}}` of catalog `mart`."""
    (catalog,) = [c for c in connection.adbc_get_objects(**filters).read_all().to_pylist() if c["catalog_name"] == "mart"]
    return {
        schema["db_schema_name"]: {
            table["table_name"]: [column["column_name"] for column in table["table_columns"] or []]
            for table in schema["db_schema_tables"] or []
        }
        for schema in catalog["catalog_db_schemas"] or []
    }


def test_objects_are_listed_at_every_depth(furnished, connection):
    assert objects(connection, depth="catalogs") == {}
    schemas = objects(connection, depth="db_schemas")
    assert {"main", "sales"} <= schemas.keys() and not any(schemas.values())
    tables = objects(connection, depth="tables")
    assert tables["sales"] == {"orders": []}
    assert tables["main"] == {"under_score": [], "underXscore": [], "big": []}
    everything = objects(connection, depth="all")
    assert everything["sales"] == {"orders": ["id", "amount", "placed"]}
    assert everything["main"]["big"] == ["id", "amount", "placed"]


def test_objects_are_filtered_by_pattern_and_kind(furnished, connection):
    assert objects(connection, depth="tables", db_schema_filter="sal%")["sales"] == {"orders": []}
    assert objects(connection, depth="tables", table_name_filter="under%")["main"].keys() == {"under_score", "underXscore"}
    assert objects(connection, depth="tables", table_types_filter=["VIEW"])["main"] == {"big": []}
    assert objects(connection, depth="columns", column_name_filter="amount")["sales"] == {"orders": ["amount"]}


def test_a_table_tells_its_schema(furnished, connection):
    told = connection.adbc_get_table_schema("orders", db_schema_filter="sales")
    assert [(field.name, field.type) for field in told] == [
        ("id", pa.int64()),
        ("amount", pa.decimal128(10, 2)),
        ("placed", pa.timestamp("us")),
    ]
    assert connection.adbc_get_table_schema("under_score").names == ["a"]


def test_table_types_are_listed(furnished, connection):
    assert {"TABLE", "VIEW"} <= set(connection.adbc_get_table_types())


def test_the_server_tells_who_it_is(connection):
    told = connection.adbc_get_info()
    assert told["vendor_name"] and told["vendor_version"] and told["vendor_arrow_version"]


def test_current_catalog_and_schema_are_told_and_set(furnished, connection):
    assert (connection.adbc_current_catalog, connection.adbc_current_db_schema) == ("mart", "main")
    connection.adbc_current_db_schema = "sales"
    assert ask(connection, "SELECT count(*) FROM orders") == [(0,)]


# --- Cancel and errors


def test_cancel_stops_the_query_on_the_server(mart, cursor):
    failed = []

    def run():
        try:
            cursor.execute(FOREVER)
            cursor.fetchall()
        except adbc_driver_manager.Error as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    mart.wait_until_working()
    cursor.adbc_cancel()
    thread.join(timeout=10)
    mart.wait_until_idle()
    assert isinstance(failed[0], OperationalError) and failed[0].status_code == adbc_driver_manager.AdbcStatusCode.CANCELLED
    cursor.execute("SELECT 1")
    assert cursor.fetchall() == [(1,)]


def test_closed_cursors_leave_no_query_behind(connection):
    # More than may run at once: if any of them stayed, the last would wait for it.
    for _ in range(80):
        with connection.cursor() as unread:
            unread.execute("SELECT range, repeat('x', 1000) FROM range(100000000)")
            unread.fetchone()
    assert ask(connection, "SELECT 1") == [(1,)]


@pytest.mark.parametrize(
    "sql, words",
    [
        ("SELECT * FROM nope", "Table with name nope does not exist"),
        ("SELEC 1", "syntax error"),
        ("SELECT 'x'::INTEGER", "Could not convert string 'x' to INT32"),
        ("INSERT INTO nope VALUES (1)", "nope"),
        ("SET memory_limit = '1TB'", "SET"),
    ],
)
def test_errors_have_the_words_of_duckdb(cursor, sql, words):
    with pytest.raises(ProgrammingError, match=words):
        cursor.execute(sql)
        cursor.fetchall()


def test_a_wrong_token_is_refused(mart):
    with pytest.raises(ProgrammingError) as refused, mart.with_token("wrong").adbc() as connection:
        ask(connection, "SELECT 1")
    assert refused.value.status_code == adbc_driver_manager.AdbcStatusCode.UNAUTHENTICATED


def test_a_tenants_token_reaches_no_other_tenants_mart(mart, node):
    other = Mart.fresh(node, tenant="acme")
    try:
        token = other.token_of("admin")
        with pytest.raises(ProgrammingError) as refused, mart.with_token(token).adbc() as connection:
            ask(connection, "SELECT 1")
        assert refused.value.status_code in (adbc_driver_manager.AdbcStatusCode.UNAUTHORIZED, adbc_driver_manager.AdbcStatusCode.NOT_FOUND)
        # Without the header it is the token's own mart.
        with other.with_token(token).adbc() as connection:
            assert ask(connection, "SELECT 1") == [(1,)]
    finally:
        other.drop()


def test_a_reader_cannot_write(mart):
    mart.query("CREATE TABLE t (a INTEGER)")
    with mart.with_token(mart.token_of("reader")).adbc() as connection:
        assert ask(connection, "SELECT count(*) FROM t") == [(0,)]
        with pytest.raises(ProgrammingError):
            ask(connection, "INSERT INTO t VALUES (1)")
        with pytest.raises(ProgrammingError), connection.cursor() as cursor:
            cursor.adbc_ingest("t", pa.table({"a": pa.array([1], pa.int32())}), mode="append")
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]


def test_user_name_and_password_are_mart_and_token(mart):
    import adbc_driver_flightsql.dbapi

    options = {"username": mart.name, "password": mart.token}
    with adbc_driver_flightsql.dbapi.connect(mart.uri, db_kwargs=options, autocommit=True) as connection:
        ask(connection, "CREATE TABLE t (a INTEGER)")
    assert mart.exists("t")
