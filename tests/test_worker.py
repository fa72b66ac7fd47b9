"""Pipelines of `tarn-worker`: a real Temporal server, a real Postgres, a real node, and the worker's own binary between them."""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import textwrap
import threading
import time
import uuid
from pathlib import Path

import jsonschema
import pytest
import yaml
from temporalio.client import ScheduleOverlapPolicy, WorkflowFailureError

from marts import FOREVER, Mart
from processes import descendants, engines_work
from served import ROOT, Refused, Server
from temporal import Worker

SCHEMA = ROOT / "docs" / "workflow.schema.json"


@pytest.fixture(scope="module")
def node(tmp_path_factory, postgres):
    gone = "postgres://tarn@127.0.0.1:1/postgres"
    wrong = postgres.url(password="wrong")
    server = Server(tmp_path_factory.mktemp("worker-node"), {"TARN_POSTGRES_MAIN": postgres.url(), "TARN_POSTGRES_GONE": gone, "TARN_POSTGRES_WRONG": wrong})
    server.put_tour_data()
    server.start()
    server.listen = server.address  # after a restart it is where the workers look for it
    yield server
    server.stop()


@pytest.fixture
def mart(node):
    return Mart.fresh(node)


@pytest.fixture
def worker(tmp_path, temporal, mart):
    with Worker(tmp_path, temporal, mart, queue=f"q-{uuid.uuid4().hex[:8]}") as worker:
        yield worker


@pytest.fixture
def table(postgres):
    name = f"t_{uuid.uuid4().hex[:8]}"
    yield name
    postgres.rows(f"DROP TABLE IF EXISTS {name}")


def definition(mart, text, **more):
    return {**yaml.safe_load(textwrap.dedent(text)), "mart": mart.name, **more}


def run(temporal, worker, defined, workflow="tarn_transform", then=None):
    """Its report; `then` gets the handle meanwhile."""

    async def started():
        client = await temporal.client()
        given = {name: value for name, value in defined.items() if name != "kind"}
        handle = await client.start_workflow(workflow, given, id=f"{defined['name']}-{uuid.uuid4().hex[:8]}", task_queue=worker.queue)
        if then:
            await then(handle)
        try:
            return await handle.result()
        finally:
            await keep_history(handle, defined["name"])

    return asyncio.run(asyncio.wait_for(started(), 120))


async def keep_history(handle, name):
    """Histories for the replay tests: `TARN_RECORD_HISTORIES=crates/worker/tests/histories`."""
    place = os.environ.get("TARN_RECORD_HISTORIES")
    if place:
        record = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "examples" / "record"
        address = handle._client.service_client.config.target_host
        history = subprocess.run([record, handle.id], env={"TEMPORAL_ADDRESS": address}, stdout=subprocess.PIPE, check=True).stdout
        # Process and machine are nobody's business.
        (ROOT / place / f"{name}.json").write_text(re.sub(r"\d+@[A-Za-z0-9.-]+?(?=[\"-])", "worker", history.decode()))


def refused(temporal, worker, defined, **more):
    """The code and the words with which it failed."""
    with pytest.raises(WorkflowFailureError) as told:
        run(temporal, worker, defined, **more)
    return told.value.cause.type, str(told.value.cause)


def no_run_is_left(mart):
    left = [found["name"] for found in mart.json("GET", f"/v1/tenants/{mart.tenant}/marts", base="")["marts"] if found["name"].startswith("run-")]
    snapshots = [found["name"] for found in mart.json("GET", "/snapshots")["snapshots"] if found["name"].startswith("before-")]
    tables = mart.rows("SELECT table_name FROM duckdb_tables() WHERE table_name LIKE 'tarn_staging%'")
    return not left and not snapshots and not tables


PIPELINE = """
    kind: transform
    name: pipeline
    steps:
      - name: metrics
        ingest: {from: 's3://sm-default-processed/metrics/*.parquet', table: metrics, mode: create}
      - name: assets
        ingest: {sql: "FROM read_json('s3://sm-default-processed/knowledge/*.json')", table: assets, mode: create}
      - name: engagement
        needs: [metrics, assets]
        sql: |
          CREATE OR REPLACE TABLE engagement AS
          SELECT a.id, m.metric, m.value FROM metrics m JOIN assets a ON a.id = m.asset_id
          WHERE m.metric = 'engagement_score'
    checks:
      - {name: no value is missing, sql: FROM engagement WHERE value IS NULL}
      - {name: one metric, sql: SELECT count(DISTINCT metric) FROM engagement, expect: 1}
    persist:
      - {name: reporting, sql: FROM engagement, connection: main, table: TABLE, mode: replace}
    publish: {tables: [engagement], snapshot: daily}
"""


def pipeline(mart, table):
    return definition(mart, PIPELINE.replace("TABLE,", f"{table},"))


def test_a_transform_lands_in_postgres_and_in_the_mart(temporal, worker, mart, postgres, table):
    """S18."""
    from test_seed import expected_join

    report = run(temporal, worker, pipeline(mart, table))
    expected = sorted(expected_join())
    assert sorted(postgres.rows(f"SELECT id, metric, value FROM {table}")) == expected
    assert sorted(mart.rows("FROM engagement")) == expected
    assert report["persisted"]["reporting"]["rows"] == report["published"]["engagement"] == len(expected)
    assert report["checks"] == ["no value is missing", "one metric"] and "left" not in report
    assert mart.rows("SELECT count(*) FROM duckdb_tables() WHERE table_name IN ('metrics', 'assets')") == [(0,)]
    assert [found["name"] for found in mart.json("GET", "/snapshots")["snapshots"]] == [report["snapshot"]]
    assert no_run_is_left(mart)


def test_steps_run_side_by_side_where_they_can(temporal, worker, mart, table):
    events = []

    async def then(handle):
        await handle.result()
        names = {}
        async for event in handle.fetch_history_events():
            if event.HasField("activity_task_scheduled_event_attributes"):
                name = event.activity_task_scheduled_event_attributes.activity_id
                names[event.event_id] = name
                events.append(("begins", name))
            if event.HasField("activity_task_completed_event_attributes"):
                events.append(("ends", names[event.activity_task_completed_event_attributes.scheduled_event_id]))

    run(temporal, worker, pipeline(mart, table), then=then)
    place = {event: index for index, event in enumerate(events)}
    first, second, joined = "step metrics", "step assets", "step engagement"
    assert max(place["begins", first], place["begins", second]) < min(place["ends", first], place["ends", second])
    assert place["begins", joined] > max(place["ends", first], place["ends", second])


@pytest.mark.parametrize("place", ["branch", "snapshot"])
def test_a_check_that_fails_leaves_everything_as_it_was(place, temporal, worker, mart, postgres, table):
    mart.query("CREATE TABLE kept AS SELECT 1 AS a")
    defined = definition(
        mart,
        f"""
        kind: transform
        name: failing-{place}
        place: {place}
        steps:
          - {{name: spoil, sql: "UPDATE kept SET a = 2; CREATE TABLE more AS SELECT 3 AS b"}}
        checks:
          - {{name: nothing changed, sql: SELECT a FROM kept, expect: 1}}
        persist:
          - {{name: out, sql: FROM kept, connection: main, table: {table}, mode: create}}
        """,
    )
    code, text = refused(temporal, worker, defined)
    assert (code, text) == ("check", "check: check `nothing changed`: wants 1, found [2]")
    assert mart.rows("FROM kept") == [(1,)]
    assert mart.rows("SELECT count(*) FROM duckdb_tables() WHERE table_name = 'more'") == [(0,)]
    assert postgres.rows("SELECT to_regclass(%s)", table) == [(None,)]
    assert no_run_is_left(mart)


def until(done, what, seconds=60):
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what


async def until_scheduled(handle, activity):
    deadline = time.monotonic() + 60
    while True:
        async for event in handle.fetch_history_events():
            if event.activity_task_scheduled_event_attributes.activity_id == activity:
                return
        assert time.monotonic() < deadline, f"no {activity}"


def adds(mart, number, table, name):
    """Adds a row to the mart's table `ev`, by way of Postgres."""
    text = f"""
        kind: transform
        name: {name}
        steps: [{{name: add, sql: INSERT INTO ev VALUES ({number})}}]
        persist: [{{name: out, sql: FROM ev, connection: main, table: {table}, mode: replace}}]
        publish: {{tables: [ev]}}
    """
    return definition(mart, text)


def test_what_others_write_meanwhile_is_never_lost(temporal, worker, mart, postgres, table):
    """A run is held up behind a lock in Postgres, when all is ready to be published, and another run and a client go by."""
    mart.query("CREATE TABLE ev (a INTEGER PRIMARY KEY); INSERT INTO ev VALUES (0)")
    postgres.rows(f"CREATE TABLE {table} (a int); CREATE TABLE other_{table} (a int)")
    lock = postgres.connect()
    lock.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")

    async def then(handle):
        await until_scheduled(handle, "persist out")
        await asyncio.to_thread(go_by)
        await asyncio.to_thread(lock.execute, "COMMIT")

    def go_by():
        mart.query("INSERT INTO ev VALUES (99)")
        client = threading.Thread(target=lambda: run(temporal, worker, adds(mart, 2, f"other_{table}", "second")))
        client.start()
        client.join()

    code, text = refused(temporal, worker, adds(mart, 1, table, "first"), then=then)
    lock.close()
    assert code == "conflict" and "main.ev was changed in the mart while the transform ran" in text
    assert mart.rows("FROM ev ORDER BY a") == [(0,), (2,), (99,)]
    # Once more, nobody interferes; the table kept its key.
    run(temporal, worker, adds(mart, 1, table, "first"))
    assert mart.rows("FROM ev ORDER BY a") == [(0,), (1,), (2,), (99,)]
    with pytest.raises(Refused):
        mart.query("INSERT INTO ev VALUES (1)")
    assert no_run_is_left(mart)
    postgres.rows(f"DROP TABLE other_{table}")


@pytest.mark.parametrize("alters", [[], ["ALTER TABLE ev ADD COLUMN b INTEGER"]], ids=["as_it_is", "altered"])
def test_rows_that_come_while_a_table_is_swapped_are_there_or_refused(mart, alters):
    """What publishing relies on, at each place of its transaction."""
    script = ["BEGIN", "SELECT count(*) FROM ev", *alters, "DELETE FROM ev", "INSERT INTO ev BY NAME SELECT 7 AS a", "COMMIT"]
    # What comes before its first statement, it sees: that is what the digest is for.
    for moment in range(2, len(script) + 1):
        mart.query("DROP TABLE IF EXISTS ev; CREATE TABLE ev (a INTEGER); INSERT INTO ev VALUES (1)")
        session = mart.json("POST", "/sessions", {})["session"]
        expected = {7}
        for index, sql in enumerate(script, 1):
            mart.query(sql, session=session)
            if index == moment:
                with contextlib.suppress(Refused):
                    mart.query("INSERT INTO ev (a) VALUES (99)")
                    expected.add(99)
        mart.json("DELETE", f"/sessions/{session}")
        assert {row[0] for row in mart.rows("SELECT a FROM ev")} == expected, script[moment - 1]


def test_a_table_gets_other_columns(temporal, worker, mart):
    mart.query("CREATE TABLE t (a INTEGER NOT NULL, gone VARCHAR, same JSON); INSERT INTO t VALUES (1, 'x', '{}')")
    sql = "CREATE OR REPLACE TABLE t AS SELECT 7 AS a, 'n' AS new, '[1]'::JSON AS same, DATE '2026-01-01' AS day, 'x'::ENUM('x', 'y') AS mood"
    text = "{kind: transform, name: columns, publish: {tables: [t]}}"
    run(temporal, worker, definition(mart, text, steps=[{"name": "s", "sql": sql}]))
    mart.server.kill()  # what its log brings back
    mart.server.start()
    columns = mart.rows("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 't' ORDER BY column_name")
    assert columns == [("a", "INTEGER"), ("day", "DATE"), ("mood", "ENUM('x', 'y')"), ("new", "VARCHAR"), ("same", "JSON")]
    assert mart.rows("SELECT a, new, same, day::VARCHAR, mood FROM t") == [(7, "n", "[1]", "2026-01-01", "x")]


def test_what_stands_in_the_way_of_publishing_is_told_before_postgres(temporal, worker, mart, postgres, table):
    mart.query("CREATE VIEW v AS SELECT 1 AS a; CREATE TABLE p (a INTEGER PRIMARY KEY); CREATE TABLE c (a INTEGER REFERENCES p); INSERT INTO p VALUES (1); INSERT INTO c VALUES (1)")
    for publish, step, words in (
        ("v", "DROP VIEW v; CREATE TABLE v AS SELECT 1 AS a", "v"),
        ("p", "INSERT INTO p VALUES (2)", "oreign key"),
        ("mistyped", "SELECT 1", "no table `mistyped`"),
    ):
        out = [{"name": "out", "sql": "SELECT 1 AS a", "connection": "main", "table": table, "mode": "create"}]
        defined = definition(mart, f"{{kind: transform, name: in-the-way, publish: {{tables: [{publish}]}}}}", persist=out, steps=[{"name": "s", "sql": step}])
        _, text = refused(temporal, worker, defined)
        assert "publish: " in text and words in text, text
        assert postgres.rows("SELECT to_regclass(%s)", table) == [(None,)]
        assert no_run_is_left(mart)


def test_going_back_waits_for_the_node_however_short_the_limits(temporal, worker, mart):
    mart.query("CREATE TABLE kept AS SELECT 1 AS a")
    text = "{kind: transform, name: going-back, place: snapshot, limits: {retry_seconds: 3}}"
    steps = [{"name": "spoil", "sql": "UPDATE kept SET a = 2"}, {"name": "long", "needs": ["spoil"], "sql": FOREVER}]

    async def then(handle):
        await until_scheduled(handle, "step long")
        await asyncio.to_thread(until, lambda: engines_work(mart.server.process.pid), "it does not run")
        await asyncio.to_thread(mart.server.kill)
        await until_scheduled(handle, "restore")
        await asyncio.to_thread(mart.server.start)

    _, text = refused(temporal, worker, definition(mart, text, steps=steps), then=then)
    assert "step `long`" in text and "going back" not in text
    assert mart.rows("FROM kept") == [(1,)] and no_run_is_left(mart)


def test_an_input_that_is_no_definition_does_nothing(temporal, worker, mart):
    circle = [{"name": "a", "sql": "FROM nowhere", "needs": ["b"]}, {"name": "b", "sql": "SELECT 1", "needs": ["a"]}]
    mart.query("CREATE TABLE t AS SELECT 1 AS a")
    defined = definition(mart, "{kind: transform, name: circle, publish: {tables: [t]}}", steps=circle)
    code, text = refused(temporal, worker, defined)
    assert code == "invalid" and "wait for each other" in text
    assert mart.rows("FROM t") == [(1,)] and no_run_is_left(mart)


def test_a_load_says_why_it_failed_and_is_not_tried_again(temporal, worker, mart):
    sql = "SELECT CASE WHEN range = 2900000 THEN 'x' ELSE '1' END::INTEGER AS v FROM range(3000000)"
    text = "{kind: transform, name: bad-load}"
    code, told = refused(temporal, worker, definition(mart, text, steps=[{"name": "s", "ingest": {"sql": sql, "table": "t", "mode": "create"}}]))
    assert code == "sql" and "Could not convert string 'x'" in told
    for rows, words in (("SELECT NULL AS id", "NULL in the key"), ("SELECT 1 AS id UNION ALL SELECT 1", "comes more than once")):
        ingest = {"sql": rows, "table": "t", "mode": "upsert", "key": ["id"]}
        steps = [{"name": "t", "sql": "CREATE TABLE t (id INTEGER PRIMARY KEY)"}, {"name": "s", "needs": ["t"], "ingest": ingest}]
        code, told = refused(temporal, worker, definition(mart, text, steps=steps))
        assert code == "sql" and words in told


def test_a_worker_that_can_t_work_ends(tmp_path, temporal, mart):
    worker = Worker(tmp_path, temporal, mart, queue="unused")
    worker.environment["TEMPORAL_NAMESPACE"] = "missing"
    done = worker.command("run", timeout=60)
    assert done.returncode == 1 and "missing" in done.stderr


def test_a_transform_in_the_mart_itself_stays(temporal, worker, mart):
    mart.query("CREATE TABLE kept AS SELECT 1 AS a")
    text = "{kind: transform, name: in-place, place: snapshot, steps: [{name: change, sql: UPDATE kept SET a = 2}]}"
    run(temporal, worker, definition(mart, text))
    assert mart.rows("FROM kept") == [(2,)] and no_run_is_left(mart)


def test_all_modes_of_a_load(temporal, worker, mart):
    text = """
        kind: transform
        name: loads
        steps:
          - {name: a, ingest: {sql: "SELECT 1 AS id, 'a' AS word", table: words, mode: replace}}
          - {name: b, needs: [a], ingest: {sql: "SELECT 2 AS id, 'b' AS word", table: words, mode: append}}
          - {name: key, needs: [b], sql: ALTER TABLE words ADD PRIMARY KEY (id)}
          - {name: c, needs: [key], ingest: {sql: "SELECT 2 AS id, 'c' AS word;", table: words, mode: upsert, key: [id]}}
          - {name: schema, sql: CREATE SCHEMA side}
          - {name: d, needs: [c, schema], ingest: {sql: FROM words, table: side.words, mode: create}}
        publish: {tables: [words, side.words]}
    """
    report = run(temporal, worker, definition(mart, text))
    assert mart.rows("FROM words ORDER BY id") == mart.rows("FROM side.words ORDER BY id") == [(1, "a"), (2, "c")]
    assert report["published"] == {"words": 2, "side.words": 2}
    # And over what is there.
    run(temporal, worker, definition(mart, text.replace("'c'", "'d'").replace("CREATE SCHEMA side", "SELECT 1").replace("table: side.words, mode: create", "table: side.words, mode: replace")))
    assert mart.rows("FROM side.words ORDER BY id") == [(1, "a"), (2, "d")]


def test_what_can_t_succeed_fails_at_once_with_its_reason(temporal, worker, mart, postgres, table):
    attempts = []

    async def then(handle):
        try:
            await handle.result()
        except WorkflowFailureError:
            pass
        async for event in handle.fetch_history_events():
            if event.HasField("activity_task_started_event_attributes"):
                attempts.append(event.activity_task_started_event_attributes.attempt)

    def out(**persist):
        given = {"name": "out", "sql": "FROM t", "connection": "main", "table": table, "mode": "append", **persist}
        text = "{kind: transform, name: bad, steps: [{name: make, sql: 'CREATE TABLE t AS SELECT 1 AS a UNION ALL SELECT 1'}]}"
        return definition(mart, text, persist=[given])

    def step(sql):
        return definition(mart, "{kind: transform, name: bad}", steps=[{"name": "make", "sql": sql}])

    postgres.rows(f"CREATE TABLE {table} (a int PRIMARY KEY)")
    cases = [
        (step("FROM nowhere"), "sql", "step `make`: sql: "),
        (step("COPY (SELECT 1) TO '/tmp/x.csv'"), "forbidden", "step `make`"),
        (out(table="missing_table"), "not_found", "missing_table"),
        (out(sql="SELECT 'word' AS a"), "sql", "persist `out`"),
        (out(sql="SELECT 1 AS other"), "invalid", "other"),
        (out(), "conflict", "persist `out`"),
        (out(connection="nobody"), "not_found", "nobody"),
        (out(connection="wrong"), None, "password"),
    ]
    for defined, code, words in cases:
        told, text = refused(temporal, worker, defined, then=then)
        assert words in text and (code is None or told == code), (told, text, words)
    assert set(attempts) == {1}
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(0,)] and no_run_is_left(mart)


def test_what_time_could_heal_is_tried_as_long_as_it_may_be(temporal, worker, mart, table):
    out = [{"name": "out", "sql": "SELECT 1 AS a", "connection": "gone", "table": table, "mode": "create"}]
    defined = definition(mart, "{kind: transform, name: patient, limits: {retry_seconds: 3}, steps: [{name: s, sql: SELECT 1}]}", persist=out)
    code, text = refused(temporal, worker, defined)
    assert code == "unavailable" and "persist `out`" in text
    assert no_run_is_left(mart)


def test_a_cancelled_workflow_stops_its_query_and_tidies_up(temporal, worker, mart):
    async def then(handle):
        deadline = time.monotonic() + 30
        while not await asyncio.to_thread(engines_work, mart.server.process.pid):
            assert time.monotonic() < deadline
        # Its progress is in its heartbeats.
        while not any(pending.HasField("heartbeat_details") for pending in (await handle.describe()).raw_description.pending_activities):
            assert time.monotonic() < deadline
        await handle.cancel()

    with pytest.raises(WorkflowFailureError) as told:
        run(temporal, worker, definition(mart, "{kind: transform, name: cancelled}", steps=[{"name": "s", "sql": FOREVER}]), then=then)
    assert "ancelled" in str(told.value.cause)
    deadline = time.monotonic() + 30
    while engines_work(mart.server.process.pid):
        assert time.monotonic() < deadline, "the query goes on"
    assert no_run_is_left(mart)


def test_maintenance_does_every_task(temporal, worker, mart):
    mart.query("CREATE TABLE t AS FROM range(10)")
    defined = definition(mart, "{kind: maintenance, name: upkeep}", marts=[mart.name])
    del defined["mart"]
    defined["tasks"] = {task: {"cron": "0 0 * * *"} for task in ("snapshot", "archive", "sweep", "verify", "vacuum")}
    report = run(temporal, worker, defined, workflow="tarn_maintenance")
    assert set(report[mart.name]) == set(defined["tasks"])
    assert len(report[mart.name]["archive"]["archives"]) == 1 and report[mart.name]["verify"]["trial"]
    assert mart.rows("SELECT count(*) FROM t") == [(10,)]


def test_a_mart_that_fails_does_not_keep_others_from_their_turn(temporal, worker, mart):
    mart.query("CREATE TABLE t AS SELECT 1")
    defined = {"name": "two", "kind": "maintenance", "marts": ["default/missing", mart.name], "tasks": {"snapshot": {"cron": "0 0 * * *"}}}
    code, text = refused(temporal, worker, defined, workflow="tarn_maintenance")
    assert code == "not_found" and "snapshot of default/missing" in text
    assert [found["name"].startswith("two-") for found in mart.json("GET", "/snapshots")["snapshots"]] == [True]


def test_schedules_come_change_run_and_go(tmp_path, temporal, worker, mart):
    name = f"nightly-{uuid.uuid4().hex[:6]}"
    file = tmp_path / "upkeep.yaml"

    def apply(tasks):
        file.write_text(yaml.safe_dump({"kind": "maintenance", "name": name, "marts": [mart.name], "tasks": tasks}))
        done = worker.command("schedule", "apply", str(file))
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    mart.query("CREATE TABLE t AS SELECT 1")
    both = {"snapshot": {"cron": "0 1 * * *", "jitter_seconds": 60}, "verify": {"cron": "0 4 * * 0"}}
    assert apply(both) == [f"tarn-{name}.snapshot", f"tarn-{name}.verify"]
    assert apply({"snapshot": {"cron": "30 1 * * *", "timezone": "Europe/Berlin"}}) == [f"tarn-{name}.snapshot"]

    async def look():
        client = await temporal.client()
        handle = client.get_schedule_handle(f"tarn-{name}.snapshot")
        found = (await handle.describe()).schedule
        assert found.spec.time_zone_name == "Europe/Berlin" and found.policy.overlap == ScheduleOverlapPolicy.SKIP
        assert found.policy.catchup_window.total_seconds() == 86400
        with pytest.raises(Exception, match="not found"):
            await client.get_schedule_handle(f"tarn-{name}.verify").describe()
        await handle.trigger()

    asyncio.run(look())
    deadline = time.monotonic() + 60
    while not mart.json("GET", "/snapshots")["snapshots"]:
        assert time.monotonic() < deadline, "the schedule runs nothing"
        time.sleep(0.1)
    while f"tarn-{name}.snapshot" not in worker.command("schedule", "list").stdout.split():
        assert time.monotonic() < deadline, "the list lags behind"
    # Another definition whose name ends like a task of this one.
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"kind": "transform", "name": f"{name}-verify", "steps": [{"name": "s", "sql": "SELECT 1"}], "schedule": {"cron": "0 0 1 1 *"}}))
    assert worker.command("schedule", "apply", str(other)).stdout.split() == [f"tarn-{name}-verify"]
    apply({"snapshot": {"cron": "30 1 * * *"}})
    assert worker.command("schedule", "delete", f"tarn-{name}-verify").returncode == 0
    assert worker.command("schedule", "delete", f"tarn-{name}.snapshot").returncode == 0
    assert worker.command("schedule", "delete", f"tarn-{name}.snapshot").returncode == 1
    bad = {"snapshot": {"cron": "a b c d e"}}
    file.write_text(yaml.safe_dump({"kind": "maintenance", "name": name, "marts": [mart.name], "tasks": bad}))
    done = worker.command("schedule", "apply", str(file))
    assert done.returncode == 1 and f"tarn-{name}.snapshot" in done.stderr


def test_one_run_from_the_command_line(tmp_path, temporal, mart):
    worker = Worker(tmp_path, temporal, mart, queue=f"q-{uuid.uuid4().hex[:8]}")
    file = tmp_path / "once.yaml"
    name = f"once-{uuid.uuid4().hex[:6]}"
    defined = {"kind": "transform", "name": name, "steps": [{"name": "s", "sql": "CREATE TABLE t AS SELECT 42 AS a"}], "publish": {"tables": ["t"]}}
    file.write_text(yaml.safe_dump(defined))
    done = worker.command("run", str(file))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["published"] == {"t": 1} and mart.rows("FROM t") == [(42,)]
    file.write_text(yaml.safe_dump({**defined, "steps": [{"name": "s", "sql": "FROM nowhere"}]}))
    done = worker.command("run", str(file))
    assert done.returncode == 1 and done.stdout == "" and "step `s`: sql:" in done.stderr


def test_files_are_checked_before_anything_runs(tmp_path, temporal, mart):
    worker = Worker(tmp_path, temporal, mart, queue="unused")
    good = tmp_path / "good.yaml"
    good.write_text(textwrap.dedent(PIPELINE))
    assert worker.command("validate", str(good)).returncode == 0
    for change, told in (
        (("needs: [metrics, assets]", "needs: [metrics, nothing]"), "step `engagement` needs `nothing`, which is no step"),
        (("needs: [metrics, assets]", "needs: [engagement]"), "steps wait for each other: engagement → engagement"),
        (("snapshot: daily", "snapshot: 2daily"), "`2daily` wants a small letter"),
        (("mode: replace", "mode: upsert"), "`mode: upsert` wants `key`"),
        (("kind: transform", "kind: transfer"), "unknown variant `transfer`"),
    ):
        bad = tmp_path / "bad.yaml"
        bad.write_text(textwrap.dedent(PIPELINE).replace(*change))
        for command in ("validate", "run"):
            done = worker.command(command, str(bad))
            assert done.returncode == 1 and told in done.stderr, done.stderr
    assert worker.command("validate").returncode == 2


def test_the_schema_knows_what_the_worker_knows(tmp_path, temporal, mart):
    worker = Worker(tmp_path, temporal, mart, queue="unused")
    schema = json.loads(worker.command("schema").stdout)
    assert json.loads(SCHEMA.read_text()) == schema, "write it again: tarn-worker schema > docs/workflow.schema.json"
    jsonschema.Draft202012Validator.check_schema(schema)
    good = yaml.safe_load(textwrap.dedent(PIPELINE))
    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "stepz": []}, schema)


RUNS = int(os.environ.get("TARN_KILLED_RUNS", "30"))
ROWS = 5000


def test_whatever_dies_rows_come_once(tmp_path, temporal, node, mart, postgres, table):
    """Runs in fives, while worker, engine, node, Postgres and Temporal are killed at random moments."""
    seed = int(os.environ.get("TARN_SEED", random.randrange(1 << 32)))
    print(f"TARN_SEED={seed}")
    chance = random.Random(seed)
    postgres.rows(f"CREATE TABLE {table} (run int, id int)")
    # Some are there already, with these columns or others.
    for number in range(0, RUNS, 2):
        mart.query(f"CREATE TABLE done_{number} AS SELECT 1 AS run, 2 AS {('id', 'other')[number % 4 // 2]}")
    worker = Worker(tmp_path, temporal, mart, queue=f"q-{uuid.uuid4().hex[:8]}").start()

    def kill_engine():
        with contextlib.suppress(ProcessLookupError):
            os.kill(chance.choice(descendants(node.process.pid)), signal.SIGKILL)

    def again(thing, *how):
        thing.stop(*how)
        thing.start()

    def kill_node():
        node.kill()
        node.start()

    victims = {
        "worker": lambda: again(worker, signal.SIGKILL),
        "engine": kill_engine,
        "node": kill_node,
        "postgres": lambda: again(postgres, signal.SIGQUIT),
        "temporal": lambda: again(temporal),
    }

    def defined(number):
        text = f"""
            kind: transform
            name: killed
            limits: {{retry_seconds: 300}}
            steps:
              - {{name: a, ingest: {{sql: "SELECT range AS id, now() AS time FROM range({ROWS}) GROUP BY ALL", table: a, mode: create}}}}
              - {{name: more, needs: [a], ingest: {{sql: "SELECT id + {ROWS} AS id, now() AS time FROM a", table: a, mode: append}}}}
              - {{name: b, sql: "CREATE TABLE b AS SELECT range AS id, {number} AS run FROM range({ROWS})"}}
              - {{name: c, needs: [more, b], sql: "CREATE OR REPLACE TABLE done_{number} AS SELECT run::int AS run, id::int AS id FROM a JOIN b USING (id)"}}
            checks:
              - {{name: all, sql: SELECT count(*) FROM done_{number}, expect: {ROWS}}}
              - {{name: once, sql: SELECT count(*) FROM a, expect: {2 * ROWS}}}
            persist: [{{name: out, sql: FROM done_{number}, connection: main, table: {table}, mode: append}}]
            publish: {{tables: [done_{number}]}}
        """
        return {name: value for name, value in definition(mart, text).items() if name != "kind"}

    async def some(numbers):
        client = await temporal.client()
        handles = [await client.start_workflow("tarn_transform", defined(number), id=f"killed-{table}-{number}", task_queue=worker.queue) for number in numbers]
        deaths = [*victims, *chance.sample(sorted(victims), 2)]
        chance.shuffle(deaths)
        for victim in deaths:
            await asyncio.sleep(chance.uniform(0, 1))  # not awaited: the moment is what is tried
            await asyncio.to_thread(victims[victim])
        await asyncio.gather(*(outcome(handle) for handle in handles))

    async def outcome(handle):
        while True:
            try:
                return await (await temporal.client()).get_workflow_handle(handle.id).result()
            except WorkflowFailureError as failed:
                raise AssertionError(f"TARN_SEED={seed}: {failed.cause}") from None
            except Exception:  # Temporal is away
                await asyncio.sleep(0.1)

    try:
        for first in range(0, RUNS, 5):
            asyncio.run(asyncio.wait_for(some(range(first, min(first + 5, RUNS))), 240))
    finally:
        worker.stop()
    found = postgres.rows(f"SELECT run, count(*), count(DISTINCT id), min(id), max(id) FROM {table} GROUP BY run ORDER BY run")
    assert found == [(number, ROWS, ROWS, 0, ROWS - 1) for number in range(RUNS)], f"TARN_SEED={seed}"
    for number in range(RUNS):
        assert mart.rows(f"SELECT count(*), count(DISTINCT id), min(run), max(run) FROM done_{number}") == [(ROWS, ROWS, number, number)], f"TARN_SEED={seed}"
    assert no_run_is_left(mart)
