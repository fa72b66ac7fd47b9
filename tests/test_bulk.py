"""Bulk data over HTTP: results as Parquet, loads of whole bodies, queries that run without a client that waits, and sessions."""

import csv
import gzip
import io
import itertools
import json
import uuid
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from marts import ARROW, FOREVER, eventually, once_free
from served import Refused

PARQUET, CSV, NDJSON = "application/vnd.apache.parquet", "text/csv", "application/x-ndjson"
ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "name": ["one", None, "drei, \"🦆\""]})
AS_TUPLES = [(1, "one"), (2, None), (3, 'drei, "🦆"')]
CHANGES = pa.table({"id": pa.array([3, 4], pa.int64()), "name": ["three", "four"]})


def arrow(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def parquet(table):
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def as_csv(table):
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(table.column_names)
    # An empty field is NULL.
    writer.writerows(["" if value is None else value for value in row.values()] for row in table.to_pylist())
    return sink.getvalue().encode()


def ndjson(table):
    return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()


ENCODERS = {ARROW: arrow, PARQUET: parquet, CSV: as_csv, NDJSON: ndjson}
FORMATS = pytest.mark.parametrize("kind", ENCODERS, ids=["arrow", "parquet", "csv", "ndjson"])


def load(mart, kind, mode="create", table=ROWS, **parameters):
    return mart.load("t", ENCODERS[kind](table), kind, mode, **parameters)


def stored(mart):
    return mart.rows("SELECT * FROM t ORDER BY ALL")


def refused(status, code, work):
    with pytest.raises(Refused) as answer:
        work()
    assert answer.value.status == status, answer.value
    body = json.loads(answer.value.body)
    assert body["code"] == code
    return body


# --- Results as Parquet


def test_a_result_is_a_parquet_file(mart):
    status, headers, body = mart.call(
        "POST", "/query", {"sql": "SELECT range AS n, range::VARCHAR AS s, DATE '2024-02-29' AS d FROM range(300000)"}, {"accept": PARQUET}
    )
    assert (status, headers["content-type"]) == (200, PARQUET)
    table = pq.read_table(io.BytesIO(body))
    assert table.num_rows == 300_000 and table.schema.names == ["n", "s", "d"]
    assert pa.compute.sum(table["n"]).as_py() == 300_000 * 299_999 // 2


def test_an_empty_result_is_a_parquet_file_too(mart):
    body = mart.call("POST", "/query", {"sql": "SELECT 1 AS a WHERE false"}, {"accept": PARQUET})[2]
    table = pq.read_table(io.BytesIO(body))
    assert (table.num_rows, table.schema.names) == (0, ["a"])


# --- Loads


@FORMATS
def test_a_body_makes_a_table(mart, kind):
    assert load(mart, kind) == {"rows": 3, "created": True}
    assert stored(mart) == AS_TUPLES


@FORMATS
def test_a_body_is_appended(mart, kind):
    load(mart, kind)
    assert load(mart, kind, "append", CHANGES) == {"rows": 2, "created": False}
    assert mart.rows("SELECT count(*), count(DISTINCT id) FROM t") == [(5, 4)]


@FORMATS
def test_a_body_replaces_a_table(mart, kind):
    mart.query("CREATE TABLE t AS SELECT 'other' AS shape")
    load(mart, kind, "replace")
    assert stored(mart) == AS_TUPLES


@FORMATS
def test_a_body_updates_rows_of_its_keys_and_adds_the_others(mart, kind):
    load(mart, kind)
    assert load(mart, kind, "upsert", CHANGES, key="id")["rows"] == 2
    assert stored(mart) == [(1, "one"), (2, None), (3, "three"), (4, "four")]


@pytest.mark.parametrize("mode", ["create", "append", "upsert"])
def test_a_load_that_finds_the_table_there_or_not_is_refused_as_asked(mart, mode):
    if mode == "create":
        mart.query("CREATE TABLE t (id BIGINT)")
        body = refused(409, "conflict", lambda: load(mart, ARROW))
    else:
        body = refused(404, "not_found", lambda: load(mart, ARROW, mode, **({"key": "id"} if mode == "upsert" else {})))
    assert "t" in body["message"] and body["outcome"] == "none"


def test_columns_are_matched_by_name(mart):
    mart.query("CREATE TABLE t (name VARCHAR, more INTEGER DEFAULT 7, id BIGINT)")
    loaded = mart.load("t", arrow(ROWS.select(["name", "id"])), ARROW, "append")
    assert loaded["rows"] == 3
    assert mart.rows("SELECT id, name, more FROM t WHERE id = 1") == [(1, "one", 7)]


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("kind", [ARROW, CSV, NDJSON], ids=["arrow", "csv", "ndjson"])
def test_bodies_may_be_compressed(mart, kind, encoding):
    body = ENCODERS[kind](ROWS)
    body = gzip.compress(body) if encoding == "gzip" else pa.compress(body, codec="zstd", asbytes=True)
    assert mart.load("t", body, kind, headers={"content-encoding": encoding})["rows"] == 3
    assert stored(mart) == AS_TUPLES


def test_a_body_of_unknown_length_is_taken_in_pieces(mart):
    rows = 200_000
    pieces = (f"{n},{n * 2}\n".encode() for n in range(rows))
    body = itertools.chain([b"a,b\n"], (b"".join(part) for part in batches(pieces, 5000)))
    assert mart.load("t", body, CSV)["rows"] == rows
    assert mart.rows("SELECT count(*), sum(b) FROM t") == [(rows, rows * (rows - 1))]


def batches(items, size):
    items = iter(items)
    while part := list(itertools.islice(items, size)):
        yield part


def big(kind):
    return ENCODERS[kind](pa.table({"a": pa.array(range(500_000), pa.int64()), "b": [str(n) for n in range(500_000)]}))


@pytest.mark.parametrize("mode", ["create", "append", "replace"])
@pytest.mark.parametrize("kind", [ARROW, PARQUET], ids=["arrow", "parquet"])
def test_a_body_that_ends_too_early_leaves_nothing(mart, kind, mode):
    if mode != "create":
        mart.query("CREATE TABLE t AS SELECT 1::BIGINT AS a, 'kept' AS b")
    body = big(kind)
    told = refused(400, "invalid", lambda: mart.load("t", body[: len(body) * 2 // 3], kind, mode))
    assert told["outcome"] == "none"
    if mode == "create":
        assert not mart.exists("t")
    else:
        assert stored(mart) == [(1, "kept")]


@FORMATS
def test_a_client_that_goes_away_in_the_middle_leaves_nothing(mart, kind):
    body = big(kind)

    def broken():
        yield body[: len(body) // 2]
        raise ConnectionAbortedError("the client is gone")

    with pytest.raises(ConnectionAbortedError):
        mart.load("t", broken(), kind)
    assert once_free(lambda: load(mart, ARROW))["rows"] == 3
    assert stored(mart) == AS_TUPLES


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_compressed_body_that_is_damaged_leaves_nothing(mart, encoding):
    body = gzip.compress(as_csv(ROWS)) if encoding == "gzip" else pa.compress(as_csv(ROWS), codec="zstd", asbytes=True)
    for broken in (body[:-6], b"not compressed at all", zlib.compress(as_csv(ROWS))):
        refused(400, "invalid", lambda: mart.load("t", broken, CSV, headers={"content-encoding": encoding}))
        assert not mart.exists("t")


@FORMATS
@pytest.mark.parametrize("column, values", [("amount", ["x", "y", "z"]), ("surplus", [1, 2, 3])], ids=["value", "unknown"])
def test_a_body_that_does_not_fit_names_the_column_and_leaves_nothing(mart, kind, column, values):
    mart.query("CREATE TABLE t (id BIGINT, name VARCHAR, amount DECIMAL(10,2))")
    with pytest.raises(Refused, match=column) as answer:
        load(mart, kind, "append", ROWS.append_column(column, pa.array(values)))
    assert answer.value.status in (400, 422)
    assert stored(mart) == []


@pytest.mark.parametrize("lines", [b"a,b\n1,2\n3,4,5,6\n", b"a,b\n1\n3,4\n", b"# note\na,b\n1,2\n"], ids=["long", "short", "comment"])
def test_no_line_is_skipped_because_it_is_no_row(mart, lines):
    with pytest.raises(Refused, match="columns") as new:
        mart.load("t", lines, CSV)
    assert new.value.status in (400, 422) and not mart.exists("t")
    mart.query("CREATE TABLE t (a BIGINT, b BIGINT)")
    with pytest.raises(Refused) as old:
        mart.load("t", lines, CSV, mode="append")
    assert old.value.status in (400, 422)
    assert not any(path in old.value.body for path in (".csv", "/marts/", "temporary files"))
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]


def test_a_comment_mark_and_an_empty_line_are_data(mart):
    mart.load("t", b"a,b\n1,#x\n#2,y\n", CSV)
    assert mart.rows("SELECT * FROM t ORDER BY b") == [("1", "#x"), ("#2", "y")]
    mart.load("one", b"a\n1\n\n3\n", CSV)
    assert mart.rows("SELECT count(*), count(a) FROM one") == [(3, 2)]


def test_a_body_that_is_no_json_is_refused(mart):
    with pytest.raises(Refused) as json_line:
        mart.load("t", b'{"a": 1}\n{"a": \n', NDJSON)
    assert json_line.value.status in (400, 422)
    assert not mart.exists("t")


@pytest.mark.parametrize(
    "rows, words",
    [
        (pa.table({"id": pa.array([1, 5, 5], pa.int64()), "name": ["a", "b", "c"]}), "5|twice|[Dd]uplicate|more than once"),
        (pa.table({"id": pa.array([1, None], pa.int64()), "name": ["a", "b"]}), "NULL|null"),
    ],
    ids=["duplicate", "null"],
)
def test_keys_that_name_no_single_row_are_refused(mart, rows, words):
    load(mart, ARROW)
    with pytest.raises(Refused, match=words):
        load(mart, ARROW, "upsert", rows, key="id")
    assert stored(mart) == AS_TUPLES


def test_an_upsert_without_a_key_or_with_an_unknown_one_is_refused(mart):
    load(mart, ARROW)
    refused(400, "invalid", lambda: load(mart, ARROW, "upsert", CHANGES))
    assert "nope" in refused(400, "invalid", lambda: load(mart, ARROW, "upsert", CHANGES, key="nope"))["message"]
    refused(400, "invalid", lambda: load(mart, ARROW, "append", CHANGES, key="id"))


def test_an_upsert_takes_several_key_columns(mart):
    first = pa.table({"a": [1, 1, 2], "b": ["x", "y", "x"], "v": [1, 2, 3]})
    mart.load("t", arrow(first), ARROW)
    second = pa.table({"a": [1, 2], "b": ["y", "y"], "v": [20, 40]})
    mart.load("t", arrow(second), ARROW, "upsert", key="a,b")
    assert stored(mart) == [(1, "x", 1), (1, "y", 20), (2, "x", 3), (2, "y", 40)]


def test_names_that_need_quotes_are_names(mart):
    path = "/tables/main/with%20%22quotes%22?mode=create"
    assert mart.json("PUT", path, arrow(ROWS), {"content-type": ARROW})["rows"] == 3
    assert mart.rows('SELECT count(*) FROM "with ""quotes"""') == [(3,)]


def test_a_load_with_a_key_of_its_own_runs_once(mart):
    headers = {"idempotency-key": uuid.uuid4().hex}
    mart.query("CREATE TABLE t (id BIGINT, name VARCHAR)")
    for _ in range(2):
        assert mart.load("t", arrow(ROWS), ARROW, "append", headers)["rows"] == 3
    assert mart.rows("SELECT count(*) FROM t") == [(3,)]


def test_a_load_is_durable_when_it_is_answered(mart):
    status, headers, _ = mart.call("PUT", "/tables/main/t?mode=create", arrow(ROWS), {"content-type": ARROW})
    assert status == 200 and headers["tarn-durable"] == "object" and headers["tarn-position"]


def test_what_is_no_load_is_refused(mart):
    refused(400, "invalid", lambda: mart.load("t", b"x", "application/pdf"))
    refused(400, "invalid", lambda: mart.load("t", arrow(ROWS), ARROW, "sideways"))
    refused(400, "invalid", lambda: mart.load("t", arrow(ROWS), ARROW, headers={"content-encoding": "br"}))
    refused(400, "invalid", lambda: mart.load("t", b"not arrow", ARROW))
    refused(400, "invalid", lambda: mart.load("t", b"", PARQUET))
    refused(403, "forbidden", lambda: load(mart.with_token(mart.token_of("reader")), ARROW))
    assert not mart.exists("t")


# --- Queries without a client that waits


def state(mart, query):
    return mart.json("GET", f"/v1/queries/{query}", base="")


def submit(mart, sql, **options):
    status, _, body = mart.call("POST", "/queries", {"sql": sql, **options})
    assert status == 202, body
    return json.loads(body)["id"]


def finished(mart, query):
    return eventually(lambda: (told := state(mart, query))["state"] not in ("queued", "running") and told, "the end of the query", 60)


def test_a_query_runs_without_its_client_and_its_result_is_paged(mart):
    query = submit(mart, "SELECT range AS n FROM range(100000) ORDER BY n")
    told = finished(mart, query)
    assert (told["state"], told["rows"], told["progress"]) == ("done", 100_000, 1)
    seen = []
    for offset in range(0, 100_000, 30_000):
        page = mart.json("GET", f"/v1/queries/{query}/result?offset={offset}&limit=30000", base="")
        seen += [n for (n,) in page["rows"]]
    assert seen == list(range(100_000))
    whole = mart.call("GET", f"/v1/queries/{query}/result", headers={"accept": ARROW}, base="")[2]
    assert pa.ipc.open_stream(whole).read_all().num_rows == 100_000


def test_a_write_runs_without_its_client(mart):
    told = finished(mart, submit(mart, "CREATE TABLE t AS SELECT range AS n FROM range(1000)"))
    assert told["state"] == "done" and told["position"]
    assert mart.rows("SELECT count(*) FROM t") == [(1000,)]


def test_progress_is_told_while_it_runs(mart):
    mart.query("CREATE TABLE t AS SELECT range AS n FROM range(20000000)")
    query = submit(mart, "SELECT count(*) FROM (SELECT a.n FROM t a JOIN t b ON a.n = b.n ORDER BY hash(a.n))")
    seen = []
    eventually(lambda: seen.append(told := state(mart, query)) or told["state"] == "done", "the end of the query", 120)
    values = [told["progress"] for told in seen]
    assert all(0 <= value <= 1 for value in values) and values[-1] == 1


def test_a_query_is_cancelled(mart):
    query = submit(mart, FOREVER)
    mart.wait_until_working()
    mart.json("DELETE", f"/v1/queries/{query}", base="")
    assert finished(mart, query)["state"] == "cancelled"
    mart.wait_until_idle()
    with pytest.raises(Refused):
        mart.json("GET", f"/v1/queries/{query}/result", base="")


def test_a_failed_query_tells_its_error(mart):
    told = finished(mart, submit(mart, "SELECT error('boom') FROM range(10)"))
    assert told["state"] == "failed" and "boom" in told["error"]["message"]


def test_another_tokens_query_is_not_found(mart):
    query = submit(mart, "SELECT 1")
    finished(mart, query)
    other = mart.with_token(mart.token_of("writer"))
    for method, path in (("GET", ""), ("GET", "/result"), ("DELETE", "")):
        refused(404, "not_found", lambda: other.json(method, f"/v1/queries/{query}{path}", base=""))


# --- Sessions


@pytest.fixture
def session(mart):
    opened = mart.json("POST", "/sessions", {})["session"]
    yield opened
    mart.call("DELETE", f"/sessions/{opened}")


def test_a_sessions_temp_table_is_its_own(mart, session):
    mart.query("CREATE TEMP TABLE mine AS SELECT 1 AS a", session=session)
    assert mart.rows("SELECT a FROM mine", session=session) == [(1,)]
    refused(422, "sql", lambda: mart.rows("SELECT a FROM mine"))


def test_a_session_sees_its_transaction_and_others_do_after_the_commit(mart, session):
    mart.query("CREATE TABLE t (a INTEGER)")
    for sql in ("BEGIN", "INSERT INTO t VALUES (1)"):
        mart.query(sql, session=session)
    assert mart.rows("SELECT count(*) FROM t", session=session) == [(1,)]
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]
    mart.query("COMMIT", session=session)
    assert mart.rows("SELECT count(*) FROM t") == [(1,)]


def test_a_closed_session_has_rolled_back_and_is_not_found(mart, session):
    mart.query("CREATE TABLE t (a INTEGER)")
    for sql in ("BEGIN", "INSERT INTO t VALUES (1)"):
        mart.query(sql, session=session)
    mart.json("DELETE", f"/sessions/{session}")
    assert mart.rows("SELECT count(*) FROM t") == [(0,)]
    refused(404, "not_found", lambda: mart.query("SELECT 1", session=session))


def test_a_conflict_is_retryable(mart, session):
    mart.query("CREATE TABLE t AS SELECT 1 AS a")
    for sql in ("BEGIN", "UPDATE t SET a = 2"):
        mart.query(sql, session=session)
    other = mart.json("POST", "/sessions", {})["session"]
    mart.query("BEGIN", session=other)

    def collide():
        mart.query("UPDATE t SET a = 3", session=other)
        mart.query("COMMIT", session=other)

    told = refused(409, "conflict", collide)
    assert told["retryable"] and told["outcome"] == "none"
    mart.query("COMMIT", session=session)
    mart.query("ROLLBACK", session=other)
    for sql in ("BEGIN", "UPDATE t SET a = 3", "COMMIT"):
        mart.query(sql, session=other)
    assert mart.rows("SELECT a FROM t") == [(3,)]


def test_another_tokens_session_is_not_found(mart, session):
    other = mart.with_token(mart.token_of("writer"))
    refused(404, "not_found", lambda: other.query("SELECT 1", session=session))
    refused(404, "not_found", lambda: other.json("DELETE", f"/sessions/{session}"))
    assert mart.rows("SELECT 1", session=session) == [(1,)]
