"""Results into a real Postgres: all of them or none, once, in every mode and type."""

import datetime
import decimal
import json
import shutil
import signal
import subprocess
import threading
import time
import uuid

import pytest

from helm import certificate
from marts import Mart
from postgres import Postgres
from processes import descendants
from served import Refused, Server, binary, free_port


@pytest.fixture(scope="module")
def connected(tmp_path_factory, postgres):
    """A node that knows it, and some that are not there."""
    root = tmp_path_factory.mktemp("persisting")
    (root / "password").write_text("postgres-secret\n")
    environment = {
        "TARN_POSTGRES_MAIN": postgres.url(),
        "TARN_POSTGRES_FILED": f"postgres://tarn@127.0.0.1:{postgres.port}/postgres",
        "TARN_POSTGRES_FILED_PASSWORD_FILE": str(root / "password"),
        "TARN_POSTGRES_NOWHERE": f"postgres://tarn@127.0.0.1:{free_port()}/postgres",
        "TARN_POSTGRES_WRONG": postgres.url(password="wrong-secret"),
        "TARN_POSTGRES_THEIRS": postgres.url(),
        "TARN_POSTGRES_THEIRS_TENANTS": "acme",
        "TARN_POSTGRES_SECURE": postgres.url(options="?sslmode=require"),
    }
    server = Server(root / "node", environment)
    server.root.mkdir()
    yield server.start()
    server.stop()


@pytest.fixture
def source(connected):
    mart = Mart.fresh(connected)
    yield mart
    mart.drop()


@pytest.fixture
def table(postgres):
    name = f"t_{uuid.uuid4().hex[:10]}"
    yield name
    postgres.rows(f"DROP TABLE IF EXISTS {name}")


def persist(mart, sql, table, mode, connection="main", key=(), **more):
    to = {"connection": connection, "table": table, "mode": mode, "key": list(key)}
    return mart.json("POST", "/persist", {"sql": sql, "postgres": to, **more})


def refusal(mart, *words, **more):
    with pytest.raises(Refused) as told:
        persist(mart, *words, **more)
    body = json.loads(told.value.body)
    assert "secret" not in told.value.body and "127.0.0.1" not in told.value.body
    return body


# --- Modes


def test_a_table_is_made_and_only_once(source, postgres, table):
    done = persist(source, "SELECT range AS a, 'x' || range AS b FROM range(10000);", table, "create")
    assert done["rows"] == 10_000 and done["replayed"] is False and done["position"]
    assert postgres.rows(f"SELECT count(*), sum(a), max(b) FROM {table}") == [(10_000, 49_995_000, "x9999")]
    assert refusal(source, "SELECT 1 AS a", table, "create")["code"] == "conflict"
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(10_000,)]


def test_rows_are_added_by_name_and_the_rest_gets_its_defaults(source, postgres, table):
    postgres.rows(f"CREATE TABLE {table} (id bigserial, b text DEFAULT 'none', a int, c int)")
    persist(source, "SELECT range AS c, range * 2 AS a FROM range(3)", table, "append")
    assert postgres.rows(f"SELECT id, b, a, c FROM {table} ORDER BY id") == [(1, "none", 0, 0), (2, "none", 2, 1), (3, "none", 4, 2)]
    assert refusal(source, "SELECT 1 AS missing", table, "append")["code"] == "invalid"
    assert refusal(source, "SELECT 1 AS a", f"{table}_other", "append")["code"] == "not_found"


def test_a_table_is_replaced_in_one_swap_and_keeps_its_indexes(source, postgres, table):
    persist(source, "SELECT 1 AS a", table, "replace")
    postgres.rows(f"ALTER TABLE {table} ADD PRIMARY KEY (a)")
    reader = postgres.connect()
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.add(reader.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    looking = threading.Thread(target=look)
    looking.start()
    try:
        persist(source, "SELECT range::INTEGER AS a FROM range(50000)", table, "replace")
    finally:
        stop.set()
        looking.join()
        reader.close()
    assert seen <= {1, 50_000}
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(50_000,)]
    assert postgres.rows("SELECT count(*) FROM pg_indexes WHERE tablename = %s", table) == [(1,)]


def test_rows_whose_key_is_there_are_overwritten(source, postgres, table):
    postgres.rows(f"CREATE TABLE {table} (k int, l text, v numeric(10,2), kept int DEFAULT 7, PRIMARY KEY (k, l))")
    sql = "SELECT range AS k, 'l' AS l, range * {} AS v FROM range({})"
    persist(source, sql.format(1, 10), table, "upsert", key=["k", "l"])
    postgres.rows(f"UPDATE {table} SET kept = 8")
    persist(source, sql.format(2, 12), table, "upsert", key=["k", "l"])
    assert postgres.rows(f"SELECT count(*), sum(v), sum(kept) FROM {table}") == [(12, decimal.Decimal("132.00"), 94)]
    assert refusal(source, "SELECT 1 AS k, 'l' AS l, range AS v FROM range(2)", table, "upsert", key=["k", "l"])["code"] == "sql"
    assert refusal(source, "SELECT 1 AS k, 'l' AS l", table, "upsert", key=["k"])["code"] == "sql"
    assert refusal(source, "SELECT 1 AS k", table, "upsert", key=["l"])["code"] == "invalid"


# --- Types


def test_every_type_arrives_as_it_was(source, postgres, table):
    values = {
        "bo": ("true", True),
        "i1": ("(-128)::TINYINT", -128),
        "u4": ("4294967295::UINTEGER", 4_294_967_295),
        "u8": ("18446744073709551615::UBIGINT", decimal.Decimal(18_446_744_073_709_551_615)),
        "h": ("170141183460469231731687303715884105727::HUGEINT", decimal.Decimal("170141183460469231731687303715884105727")),
        "f": ("1.5::FLOAT", 1.5),
        "d": ("'-1e300'::DOUBLE", -1e300),
        "dec": ("-12345678901234567.89::DECIMAL(19,2)", decimal.Decimal("-12345678901234567.89")),
        "wide": ("0.00000000000000000000000000000000000001::DECIMAL(38,38)", decimal.Decimal("1e-38")),
        "t": ("'grün 🦆'", "grün 🦆"),
        "by": ("'\\x00\\xFF'::BLOB", b"\x00\xff"),
        "da": ("DATE '1969-12-31'", datetime.date(1969, 12, 31)),
        "ti": ("TIME '23:59:59.999999'", datetime.time(23, 59, 59, 999_999)),
        "ts": ("TIMESTAMP '1900-01-01 00:00:00.000001'", datetime.datetime(1900, 1, 1, 0, 0, 0, 1)),
        "tz": ("TIMESTAMPTZ '2024-02-29 12:00:00+02'", datetime.datetime(2024, 2, 29, 10, tzinfo=datetime.timezone.utc)),
        "iv": ("INTERVAL '3 days 4 seconds'", datetime.timedelta(days=3, seconds=4)),
        "u": ("'01234567-89ab-cdef-0123-456789abcdef'::UUID", uuid.UUID("01234567-89ab-cdef-0123-456789abcdef")),
        "e": ("'a'::ENUM('a', 'b')", "a"),
        "l": ("[1, NULL, 3]", [1, None, 3]),
        "le": ("[]::VARCHAR[]", []),
        "ll": ("[[1], []]", [[1], []]),
        "s": ("{'a': 1, 'b': ['x']}", {"a": 1, "b": ["x"]}),
        "m": ("MAP {'k': 5}", {"k": 5}),
        "j": ("'{\"z\": null}'::JSON", {"z": None}),
        "n": ("NULL::INTEGER", None),
    }
    columns = ", ".join(f"{sql} AS {name}" for name, (sql, _) in values.items())
    nulls = ", ".join(f"NULL AS {name}" for name in values)
    persist(source, f"SELECT {columns} UNION ALL SELECT {nulls}", table, "create")
    found = postgres.rows(f"SELECT {', '.join(values)} FROM {table} WHERE bo")[0]
    assert dict(zip(values, found)) == {name: value for name, (_, value) in values.items()}
    assert postgres.rows(f"SELECT num_nulls({', '.join(values)}) FROM {table} WHERE bo IS NULL") == [(len(values),)]
    # And the same into the table as it is by now.
    persist(source, f"SELECT {columns}", table, "append")
    assert len(set(map(str, postgres.rows(f"SELECT {', '.join(values)} FROM {table} WHERE bo")))) == 1


def test_infinities_stay_infinite(source, postgres, table):
    sql = "SELECT 'infinity'::DATE AS d, '-infinity'::TIMESTAMP AS t, 'nan'::DOUBLE AS x, 'inf'::DOUBLE AS n"
    postgres.rows(f"CREATE TABLE {table} (d date, t timestamp, x float8, n numeric)")
    persist(source, sql, table, "append")
    assert postgres.rows(f"SELECT d::text, t::text, x::text, n::text FROM {table}") == [("infinity", "-infinity", "NaN", "Infinity")]


def test_the_table_decides_what_a_column_becomes(source, postgres, table):
    postgres.rows(f"CREATE TYPE mood_{table} AS ENUM ('sad', 'ok'); CREATE DOMAIN small_{table} AS int CHECK (VALUE < 10)")
    postgres.rows(f"CREATE TABLE {table} (a smallint, b varchar(3), c jsonb, d mood_{table}, e small_{table}, f bigint[], g char(2))")
    persist(source, "SELECT 7::BIGINT AS a, 'abc' AS b, [1, 2] AS c, 'ok' AS d, 9 AS e, [1::TINYINT] AS f, 'x' AS g", table, "append")
    assert postgres.rows(f"SELECT * FROM {table}") == [(7, "abc", [1, 2], "ok", 9, [1], "x ")]
    for sql, code in [
        ("SELECT 100000 AS a", "sql"),
        ("SELECT 'abcd' AS b", "sql"),
        ("SELECT 'furious' AS d", "sql"),
        ("SELECT 11 AS e", "conflict"),
        ("SELECT 1 AS f", "invalid"),
        ("SELECT 'x' AS a", "sql"),
    ]:
        assert refusal(source, sql, table, "append")["code"] == code, sql
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(1,)]
    postgres.rows(f"DROP TABLE {table}; DROP TYPE mood_{table}; DROP DOMAIN small_{table}")


@pytest.mark.parametrize("sql", ["'1'::BIT", "TIMESTAMP_NS '2024-01-01'", "1::UNION(a INTEGER)"])
def test_what_has_no_place_is_said_before_anything_is_sent(source, postgres, table, sql):
    told = refusal(source, f"SELECT {sql} AS c, error('not reached') AS d", table, "create")
    assert told["code"] == "invalid" and "`c`" in told["message"] and told["outcome"] == "none"
    assert postgres.rows("SELECT to_regclass(%s)", table) == [(None,)]


# --- Once, or not at all


def test_under_a_key_it_is_there_once(source, postgres, table):
    sql = "SELECT range AS a FROM range(100)"
    persist(source, "SELECT 0::BIGINT AS a LIMIT 0", table, "create")
    first = persist(source, sql, table, "append", idempotency_key="k")
    again = persist(source, sql, table, "append", idempotency_key="k")
    assert again == {**first, "replayed": True} and first["rows"] == 100
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(100,)]
    assert refusal(source, "SELECT 5 AS a", table, "append", idempotency_key="k")["code"] == "conflict"
    # Of several at once one does it.
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(persist(source, sql, table, "append", idempotency_key="many"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answer["replayed"] for answer in answers) == [False] + [True] * 5
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(200,)]


def test_the_checksum_is_of_the_rows_whatever_their_order(source, table):
    sums = [persist(source, sql, table, "replace")["checksum"] for sql in (
        "SELECT range AS a FROM range(1000)",
        "SELECT range AS a FROM range(1000) ORDER BY hash(range)",
        "SELECT range AS a FROM range(1, 1001)",
    )]
    assert sums[0] == sums[1] != sums[2]


def test_a_query_that_fails_in_its_middle_leaves_nothing(source, postgres, table):
    sql = "SELECT CASE WHEN range = 2500000 THEN error('boom') ELSE range END AS a FROM range(3000000)"
    told = refusal(source, sql, table, "create")
    # Where a thread that was stopped by the one that failed is heard first, DuckDB does not tell why.
    assert told["code"] == "sql" and ("boom" in told["message"] or "kept the reason" in told["message"]) and told["outcome"] == "none"
    assert postgres.rows("SELECT to_regclass(%s)", table) == [(None,)]


def test_a_row_that_breaks_a_rule_leaves_nothing(source, postgres, table):
    postgres.rows(f"CREATE TABLE {table} (a bigint PRIMARY KEY)")
    told = refusal(source, "SELECT range % 99999 AS a FROM range(100000)", table, "append")
    assert told["code"] == "conflict" and told["retryable"] is False
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(0,)]


@pytest.mark.parametrize("connection, code, retryable", [("nowhere", "unavailable", True), ("wrong", "forbidden", False), ("none", "not_found", False), ("theirs", "not_found", False), ("secure", "unavailable", True)])
def test_a_postgres_that_can_t_be_used_is_said_so(source, table, connection, code, retryable):
    told = refusal(source, "SELECT 1 AS a", table, "create", connection=connection)
    assert (told["code"], told["retryable"], told["outcome"]) == (code, retryable, "none"), told


def test_a_password_may_be_in_a_file(source, postgres, table):
    assert persist(source, "SELECT 1 AS a", table, "create", connection="filed")["rows"] == 1


def test_over_tls_the_server_is_checked(tmp_path):
    own = Postgres(tmp_path / "own")
    own.root.mkdir()
    own.start()
    own.stop()
    data = own.root / "data"
    certificate(data)
    for name in ("tls.key", "tls.crt"):
        shutil.chown(data / name, "postgres")
        (data / name).chmod(0o600)
    own.start("-c", "ssl=on", "-c", "ssl_cert_file=tls.crt", "-c", "ssl_key_file=tls.key")
    url = own.url(options="?sslmode=require").replace("127.0.0.1", "localhost")
    environment = {"TARN_POSTGRES_KNOWN": url, "TARN_POSTGRES_KNOWN_CA_FILE": str(data / "ca.crt"), "TARN_POSTGRES_STRANGE": url}
    server = Server(tmp_path / "node", environment)
    server.root.mkdir()
    server.start()
    try:
        mart = Mart.fresh(server)
        assert persist(mart, "SELECT 1 AS a", "t", "create", connection="known")["rows"] == 1
        assert refusal(mart, "SELECT 1 AS a", "u", "create", connection="strange")["code"] == "unavailable"
        assert own.rows("SELECT to_regclass('t') IS NOT NULL, to_regclass('u') IS NULL") == [(True, True)]
    finally:
        server.stop()
        own.stop()


def test_a_reader_may_not_and_only_queries_may_be_persisted(source, table):
    reader = source.with_token(source.token_of("reader"))
    assert refusal(reader, "SELECT 1 AS a", table, "create")["code"] == "forbidden"
    for sql in ("CREATE TABLE x (a INTEGER)", "SELECT 1; SELECT 2", "SHOW TABLES", ""):
        assert refusal(source, sql, table, "create")["code"] in ("invalid", "sql")


def test_an_earlier_moment_is_persisted_too(source, postgres, table):
    source.query("CREATE TABLE s AS SELECT 1 AS a")
    source.json("POST", "/snapshots", {"name": "before"})
    source.query("UPDATE s SET a = 2")
    persist(source, "FROM s", table, "create", at="before")
    assert postgres.rows(f"SELECT a FROM {table}") == [(1,)]


def test_the_command_line_persists(source, postgres, table):
    dsn = f"tarn://{source.token}@{source.server.address}/{source.name}"
    command = [binary(), "persist", dsn, "SELECT 42 AS a", "--connection", "main", "--table", table, "--mode", "create"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith(f"1 rows in {table} of `main`"), done
    assert postgres.rows(f"SELECT a FROM {table}") == [(42,)]


# --- Deaths


def later(call):
    """Runs it beside, and gives what came of it."""
    result = []

    def run():
        try:
            result.append(call())
        except Exception as error:  # what the test is about
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def copying(postgres):
    deadline = time.monotonic() + 30
    while not postgres.rows("SELECT pid FROM pg_stat_activity WHERE application_name = 'tarn persist' AND query LIKE 'COPY%%'"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Streams for a day.
SLOW = "SELECT a.range AS a FROM range(1000000) a, range(1000000) b"


def test_a_cancelled_one_leaves_nothing(source, postgres, table):
    id = str(uuid.uuid4())
    to = {"connection": "main", "table": table, "mode": "create"}
    thread, result = later(lambda: source.json("POST", "/persist", {"sql": SLOW, "postgres": to}, headers={"tarn-query-id": id}))
    copying(postgres)
    source.json("DELETE", f"/v1/queries/{id}", base="")
    thread.join(timeout=60)
    assert json.loads(result[0].body)["code"] == "cancelled"
    assert postgres.rows("SELECT to_regclass(%s)", table) == [(None,)]


def test_an_engine_that_dies_leaves_nothing(source, postgres, table):
    thread, result = later(lambda: persist(source, SLOW, table, "create"))
    copying(postgres)
    for pid in descendants(source.server.process.pid):
        subprocess.run(["kill", "-9", str(pid)])
    thread.join(timeout=60)
    told = json.loads(result[0].body)
    assert told["code"] == "unavailable" and told["outcome"] == "none", told
    assert postgres.rows("SELECT to_regclass(%s)", table) == [(None,)]


def test_a_postgres_that_restarts_loses_and_doubles_nothing(source, tmp_path):
    own = Postgres(tmp_path / "own")
    own.root.mkdir()
    own.start()
    server = Server(tmp_path / "node", {"TARN_POSTGRES_OWN": own.url()})
    server.root.mkdir()
    server.start()
    try:
        mart = Mart.fresh(server)
        mart.query("CREATE TABLE s AS SELECT range AS a FROM range(400000)")
        own.rows("CREATE TABLE t (step int, a bigint)")
        for step in range(6):
            call = lambda: persist(mart, f"SELECT {step} AS step, a FROM s", "t", "append", connection="own", idempotency_key=str(step))  # noqa: B023, E731
            thread, _ = later(call)
            time.sleep(0.05 * step)  # not awaited: the moment is what is tried
            own.stop(signal.SIGQUIT)
            thread.join(timeout=120)
            own.start()
            deadline = time.monotonic() + 60
            while True:
                try:
                    call()
                    break
                except Refused as refused:
                    assert json.loads(refused.body)["code"] == "unavailable" and time.monotonic() < deadline, refused
        assert own.rows("SELECT step, count(*), sum(a) FROM t GROUP BY step ORDER BY step") == [(step, 400_000, 400_000 * 399_999 // 2) for step in range(6)]
    finally:
        server.stop()
        own.stop()
