"""Flight SQL by `pyarrow.flight`: what the protocol says, message by message, and what a server says to bad ones."""

import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import flight

import flightsql
from flightsql import command, decode, encode, packed, query, unpacked, update
from marts import FOREVER, Mart, once_free

# By the protocol's codes: INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED, UNAUTHENTICATED, PERMISSION_DENIED.
INVALID, NOT_FOUND, UNIMPLEMENTED = pa.ArrowInvalid, pa.ArrowKeyError, pa.ArrowNotImplementedError
UNAUTHENTICATED, DENIED = flight.FlightUnauthenticatedError, flight.FlightUnauthorizedError
REFUSED = (INVALID, NOT_FOUND, UNIMPLEMENTED, UNAUTHENTICATED, DENIED)
NUMBERS = pa.table({"a": pa.array([1, 2, 3], pa.int32()), "b": ["x", "y", None]})


@pytest.fixture
def client(mart):
    with mart.flight() as client:
        yield client


def put(client, descriptor, table):
    return client.put(descriptor, table.to_batches(), table.schema)


# --- Who may


def test_a_basic_handshake_answers_with_a_bearer_for_the_named_mart(mart):
    connection = flight.FlightClient(mart.uri)
    bearer = connection.authenticate_basic_token(mart.name, mart.token)
    options = flight.FlightCallOptions(headers=[bearer])
    info = connection.get_flight_info(query("SELECT current_database()"), options)
    assert connection.do_get(info.endpoints[0].ticket, options).read_all().num_rows == 1
    connection.do_put(update("CREATE TABLE t (a INTEGER)"), pa.schema([]), options)[0].close()
    assert mart.exists("t")


def test_a_wrong_password_is_unauthenticated(mart):
    with pytest.raises(UNAUTHENTICATED):
        flight.FlightClient(mart.uri).authenticate_basic_token(mart.name, "wrong")


def test_without_a_token_nothing_is_answered(mart):
    bare = flight.FlightClient(mart.uri)
    with pytest.raises(UNAUTHENTICATED):
        bare.get_flight_info(query("SELECT 1"))
    with pytest.raises(UNAUTHENTICATED):
        list(bare.do_action(flight.Action("BeginTransaction", b"")))
    with pytest.raises(UNAUTHENTICATED):
        bare.do_get(flight.Ticket(b"anything")).read_all()


def test_a_mart_that_is_not_there_is_not_found(mart):
    with Mart(mart.server, "default/nowhere").flight() as client, pytest.raises(NOT_FOUND, match="default/nowhere|`nowhere`"):
        client.info(query("SELECT 1"))


# --- Tickets


@pytest.mark.parametrize("ticket", [b"", b"nonsense", b"\x00" * 64, bytes(range(256)) * 64])
def test_a_ticket_that_is_none_is_refused(client, ticket):
    with pytest.raises(REFUSED):
        client.get(flight.Ticket(ticket)).read_all()
    assert client.rows("SELECT 1") == [(1,)]


def test_a_ticket_is_refused_when_any_byte_of_it_was_changed(client):
    whole = client.info(query("SELECT 1 AS a")).endpoints[0].ticket.ticket
    assert client.get(flight.Ticket(whole)).read_all().to_pylist() == [{"a": 1}]
    step = max(1, len(whole) // 24)
    for at in range(0, len(whole), step):
        broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(REFUSED):
            client.get(flight.Ticket(broken)).read_all()
    for part in (whole[:-1], whole + b"x", whole[: len(whole) // 2]):
        with pytest.raises(REFUSED):
            client.get(flight.Ticket(part)).read_all()


def test_a_ticket_is_worth_nothing_to_another_principal(mart, client):
    ticket = client.info(query("SELECT 'secret' AS s")).endpoints[0].ticket
    with mart.with_token(mart.token_of("reader")).flight() as other, pytest.raises(REFUSED) as refused:
        other.get(ticket).read_all()
    assert "secret" not in str(refused.value)
    assert client.get(ticket).read_all().num_rows == 1


# --- Statements


@pytest.mark.parametrize("gets", [0, 1, 2])
def test_a_write_runs_once_in_get_flight_info_however_often_it_is_fetched(mart, client, gets):
    mart.query("CREATE TABLE t (a INTEGER)")
    info = client.info(query("INSERT INTO t VALUES (1), (2)"))
    for _ in range(gets):
        assert [list(row.values()) for row in client.get(info.endpoints[0].ticket).read_all().to_pylist()] == [[2]]
    assert mart.rows("SELECT count(*) FROM t") == [(2,)]


def test_an_update_by_do_put_answers_with_its_count(mart, client):
    assert client.execute("CREATE TABLE t AS SELECT range AS a FROM range(7)") in (0, 7, -1)
    assert client.execute("UPDATE t SET a = 0 WHERE a > 3") == 3
    assert mart.rows("SELECT count(*) FROM t WHERE a = 0") == [(4,)]


@pytest.mark.parametrize("sql", ["CREATE TABLE made (a INTEGER)", "INSERT INTO t VALUES (1)", "DROP TABLE t"])
def test_schemas_are_told_without_running_anything(mart, client, sql):
    mart.query("CREATE TABLE t (a INTEGER)")
    client.schema(query(sql))
    prepare(client, sql)
    assert not mart.exists("made")
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]


def test_the_schema_told_is_the_schema_sent(client):
    sql = "SELECT 1::HUGEINT AS h, [1] AS l, {'a': DATE '2024-01-01'} AS s, 'x' AS v, 1.5::DECIMAL(9,3) AS d"
    told = client.schema(query(sql))
    info = client.info(query(sql))
    sent = client.get(info.endpoints[0].ticket).read_all().schema
    assert told.equals(sent) and info.schema.equals(sent)
    assert {field.name: field.metadata[b"tarn.duckdb_type"].decode() for field in sent} == {
        "h": "HUGEINT",
        "l": "INTEGER[]",
        "s": "STRUCT(a DATE)",
        "v": "VARCHAR",
        "d": "DECIMAL(9,3)",
    }


def test_an_empty_result_has_its_schema(client):
    table = client.read("SELECT 1 AS a WHERE false")
    assert table.num_rows == 0 and table.schema.names == ["a"]


def test_results_are_whole(client):
    table = client.read("SELECT range AS a FROM range(3000000)")
    assert table.num_rows == 3_000_000
    assert pa.compute.sum(table["a"]).as_py() == 3_000_000 * 2_999_999 // 2


def test_a_read_that_fails_in_its_middle_breaks_the_stream(client):
    with pytest.raises((pa.ArrowException, flight.FlightError), match="boom"):
        client.read("SELECT CASE WHEN range = 3000000 THEN error('boom') ELSE range END AS a FROM range(4000000)")
    assert client.rows("SELECT 1") == [(1,)]


# --- Prepared statements


def prepare(client, sql, transaction=None):
    (answer,) = client.action("CreatePreparedStatement", packed("ActionCreatePreparedStatementRequest", {1: sql, 2: transaction}))
    return unpacked(answer)[1]


def test_a_prepared_read_is_bound_again_and_again(client):
    made = prepare(client, "SELECT ? + 1 AS n")
    assert pa.ipc.read_schema(pa.py_buffer(made[2][0])).names == ["n"]
    assert len(pa.ipc.read_schema(pa.py_buffer(made[3][0]))) == 1
    handle = made[1][0]
    for value in (1, 41):
        bound = pa.table({"0": pa.array([value], pa.int64())})
        writer, reader = client.flight.do_put(command("CommandPreparedStatementQuery", {1: handle}), bound.schema, client.options())
        with writer:
            writer.write_table(bound)
            writer.done_writing()
            answer = reader.read()
        handle = decode(answer.to_pybytes()).get(1, [handle])[0] if answer else handle
        assert client.table(command("CommandPreparedStatementQuery", {1: handle})).to_pylist() == [{"n": value + 1}]


def test_a_prepared_write_takes_a_batch_of_parameters(mart, client):
    mart.query("CREATE TABLE t (a INTEGER)")
    made = prepare(client, "INSERT INTO t VALUES (?)")
    assert len(pa.ipc.read_schema(pa.py_buffer(made[2][0]))) == 0
    rows = pa.table({"0": pa.array(range(100), pa.int64())})
    assert put(client, command("CommandPreparedStatementUpdate", {1: made[1][0]}), rows) == 100
    assert mart.rows("SELECT sum(a) FROM t") == [(4950,)]


def test_a_closed_handle_is_not_found_and_another_principals_too(mart, client):
    handle = prepare(client, "SELECT 1")[1][0]
    prepared = command("CommandPreparedStatementQuery", {1: handle})
    with mart.with_token(mart.token_of("writer")).flight() as other, pytest.raises(REFUSED):
        other.info(prepared)
    assert client.table(prepared).num_rows == 1
    client.action("ClosePreparedStatement", packed("ActionClosePreparedStatementRequest", {1: handle}))
    with pytest.raises((NOT_FOUND, INVALID), match="[Pp]repared|handle|statement"):
        client.info(prepared)


# --- Transactions


def test_a_transaction_is_seen_by_all_only_after_its_commit(mart, client):
    transaction = client.begin()
    client.execute("CREATE TABLE t (a INTEGER)", transaction)
    put(client, flightsql.ingest("t", "fail", "append", transaction=transaction), NUMBERS.select(["a"]))
    assert client.rows("SELECT count(*) FROM t", transaction) == [(3,)]
    assert not mart.exists("t")
    client.end(transaction)
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


def test_a_transaction_that_ended_is_not_found(client):
    transaction = client.begin()
    client.end(transaction, commit=False)
    with pytest.raises(REFUSED):
        client.rows("SELECT 1", transaction)
    with pytest.raises(REFUSED):
        client.end(transaction)


def test_another_principals_transaction_is_not_found(mart, client):
    transaction = client.begin()
    with mart.with_token(mart.token_of("writer")).flight() as other, pytest.raises(REFUSED):
        other.rows("SELECT 1", transaction)
    client.end(transaction)


def test_savepoints_are_answered_as_not_there(client):
    transaction = client.begin()
    with pytest.raises(UNIMPLEMENTED, match="[Ss]avepoint"):
        client.action("BeginSavepoint", packed("ActionBeginSavepointRequest", {1: transaction, 2: "s"}))
    client.end(transaction, commit=False)


# --- Metadata

CATALOG = {
    "CommandGetCatalogs": ["catalog_name"],
    "CommandGetDbSchemas": ["catalog_name", "db_schema_name"],
    "CommandGetTableTypes": ["table_type"],
    "CommandGetTables": ["catalog_name", "db_schema_name", "table_name", "table_type"],
    "CommandGetSqlInfo": ["info_name", "value"],
}
KEYS = ["pk_catalog_name", "pk_db_schema_name", "pk_table_name", "pk_column_name", "fk_catalog_name", "fk_db_schema_name"]


@pytest.mark.parametrize("name", CATALOG)
def test_catalogs_have_the_columns_of_the_protocol(mart, client, name):
    mart.query("CREATE TABLE t (a INTEGER)")
    table = client.table(command(name))
    assert table.schema.names == CATALOG[name]
    assert table.num_rows > 0
    assert client.schema(command(name)).names == CATALOG[name]


def test_types_are_described_for_odbc_and_jdbc(client):
    table = client.table(command("CommandGetXdbcTypeInfo"))
    assert table.schema.names[:3] == ["type_name", "data_type", "column_size"] and len(table.schema.names) == 19
    assert {"INTEGER", "VARCHAR"} <= set(table["type_name"].to_pylist())


def test_keys_are_told(mart, client):
    mart.query("CREATE TABLE p (a INTEGER, b INTEGER, PRIMARY KEY (a, b))")
    mart.query("CREATE TABLE f (a INTEGER, b INTEGER, FOREIGN KEY (a, b) REFERENCES p (a, b))")
    primary = client.table(command("CommandGetPrimaryKeys", {3: "p"})).to_pylist()
    assert sorted((key["key_sequence"], key["column_name"]) for key in primary) == [(1, "a"), (2, "b")]
    for name, fields in (
        ("CommandGetImportedKeys", {3: "f"}),
        ("CommandGetExportedKeys", {3: "p"}),
        ("CommandGetCrossReference", {3: "p", 6: "f"}),
    ):
        table = client.table(command(name, fields))
        assert table.schema.names[:6] == KEYS
        assert [(key["pk_column_name"], key["fk_column_name"]) for key in table.to_pylist()] == [("a", "a"), ("b", "b")]


def test_tables_tell_their_schemas(mart, client):
    mart.query("CREATE TABLE t (a INTEGER NOT NULL, b VARCHAR)")
    (row,) = client.table(command("CommandGetTables", {3: "t", 5: 1})).to_pylist()
    assert pa.ipc.read_schema(pa.py_buffer(row["table_schema"])).names == ["a", "b"]


def test_actions_are_listed(client):
    names = {action.type for action in client.flight.list_actions(client.options())}
    assert {"CancelFlightInfo", "BeginTransaction", "EndTransaction", "CreatePreparedStatement", "ClosePreparedStatement"} <= names


# --- Ingest


def test_rows_arrive_by_ingest(mart, client):
    assert put(client, flightsql.ingest("t"), NUMBERS) == 3
    assert put(client, flightsql.ingest("t", "fail", "append"), NUMBERS) == 3
    assert put(client, flightsql.ingest("t", "create", "replace"), NUMBERS) == 3
    assert mart.rows("SELECT * FROM t ORDER BY a") == [(1, "x"), (2, "y"), (3, None)]


@pytest.mark.parametrize(
    "wrong, words",
    [
        (NUMBERS.append_column("extra", pa.array([1, 2, 3])), "`?extra`?"),
        (pa.table({"a": ["not a number"], "b": ["x"]}), "`?a`?|not a number"),
        (pa.table({"a": [[1, 2]], "b": ["x"]}), "`?a`?"),
    ],
    ids=["unknown", "value", "type"],
)
def test_an_ingest_that_does_not_fit_names_what_differs_and_leaves_nothing(mart, client, wrong, words):
    put(client, flightsql.ingest("t"), NUMBERS)
    with pytest.raises((pa.ArrowException, flight.FlightError), match=words):
        put(client, flightsql.ingest("t", "fail", "append"), wrong)
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


def test_a_column_that_a_load_leaves_out_gets_its_default(mart, client):
    mart.query("CREATE TABLE t (a INTEGER, b VARCHAR DEFAULT 'none')")
    assert put(client, flightsql.ingest("t", "fail", "append"), pa.table({"a": pa.array([1], pa.int32())})) == 1
    assert mart.rows("SELECT * FROM t") == [(1, "none")]


CUT = """
import os, sys
sys.path.insert(0, sys.argv[1])
import pyarrow as pa
import flightsql
client = flightsql.Client(*sys.argv[2:5])
batch = pa.record_batch([pa.array(range(100_000))], ["a"])
writer, reader = client.flight.do_put(flightsql.ingest("t"), batch.schema, client.options())
for _ in range(50):
    writer.write_batch(batch)
os._exit(7)
"""


def test_a_stream_that_is_cut_leaves_nothing(mart, client):
    command = [sys.executable, "-c", CUT, Path(flightsql.__file__).parent, mart.server.address, mart.token, mart.name]
    assert subprocess.run(command, timeout=120).returncode == 7
    assert once_free(lambda: put(client, flightsql.ingest("t"), NUMBERS)) == 3
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


# --- Cancel


def test_cancel_flight_info_stops_the_query(mart, client):
    info = client.info(query(FOREVER))
    failed = []

    def fetch():
        try:
            with mart.flight() as reader:
                reader.get(info.endpoints[0].ticket).read_all()
        except (pa.ArrowException, flight.FlightError) as error:
            failed.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    mart.wait_until_working()
    (answer,) = client.action("CancelFlightInfo", encode({1: info.serialize()}))
    assert decode(answer)[1] == [1]  # CANCELLED
    thread.join(timeout=10)
    assert failed
    mart.wait_until_idle()


def test_cancelling_what_has_ended_harms_nothing(client):
    info = client.info(query("SELECT 1"))
    client.get(info.endpoints[0].ticket).read_all()
    (answer,) = client.action("CancelFlightInfo", encode({1: info.serialize()}))
    assert decode(answer)[1][0] in (1, 3)  # CANCELLED or NOT_CANCELLABLE
    assert client.rows("SELECT 1") == [(1,)]


def test_a_deadline_ends_the_query(mart, client):
    with pytest.raises(flight.FlightTimedOutError):
        info = client.flight.get_flight_info(query(FOREVER), client.options(timeout=2))
        client.get(info.endpoints[0].ticket, timeout=2).read_all()
    mart.wait_until_idle()


# --- Bad input

NONSENSE = {
    "no command": flight.FlightDescriptor.for_command(b""),
    "not a message": flight.FlightDescriptor.for_command(b"\xff" * 100),
    "a path": flight.FlightDescriptor.for_path("a", "b"),
    "unknown command": command("CommandNobodyKnows"),
    "another package": flight.FlightDescriptor.for_command(encode({1: "type.googleapis.com/google.protobuf.Duration", 2: b""})),
    "substrait": command("CommandStatementSubstraitPlan", {1: {1: b"plan"}}),
    "a message that lies about its length": flight.FlightDescriptor.for_command(packed("CommandStatementQuery", {1: "SELECT 1"})[:-3]),
    "text that is not UTF-8": command("CommandStatementQuery", {1: b"SELECT '\xff\xfe'"}),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_an_unknown_command_is_refused_and_the_server_goes_on(client, name):
    with pytest.raises(REFUSED):
        client.info(NONSENSE[name])
    with pytest.raises(REFUSED):
        client.schema(NONSENSE[name])
    with pytest.raises(REFUSED):
        put(client, NONSENSE[name], NUMBERS)
    assert client.rows("SELECT 1") == [(1,)]


def test_an_unknown_action_is_refused_by_name(client):
    with pytest.raises((UNIMPLEMENTED, INVALID), match="NobodyKnows"):
        client.action("NobodyKnows")
    with pytest.raises(REFUSED):
        client.action("EndTransaction", b"\xff\xff\xff")


def test_a_statement_that_is_too_large_is_refused_and_the_server_goes_on(client):
    with pytest.raises((pa.ArrowException, flight.FlightError)):
        client.info(query("SELECT '" + "x" * (64 << 20) + "'"))
    assert client.rows("SELECT 1") == [(1,)]


def test_large_batches_are_taken(mart, client):
    large = pa.table({"a": pa.array(range(8_000_000), pa.int64())})
    assert client.put(flightsql.ingest("t"), large.to_batches(max_chunksize=8_000_000), large.schema) == 8_000_000
    assert mart.rows("SELECT count(*), max(a) FROM t") == [(8_000_000, 7_999_999)]
