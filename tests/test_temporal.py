"""Workers of Temporal join in the mart and land in Postgres: a real Temporal server, a real Postgres, and our activities between them."""

import asyncio
import sys
import time
import uuid
from datetime import timedelta

import pytest

from marts import Mart
from served import ROOT, Server

sys.path.insert(0, str(ROOT / "packages"))

from temporalio import workflow  # noqa: E402
from temporalio.client import WorkflowFailureError  # noqa: E402
from temporalio.common import RetryPolicy  # noqa: E402
from temporalio.worker import UnsandboxedWorkflowRunner, Worker  # noqa: E402

from analytics import Settings  # noqa: E402
from analytics.activities import Activities, Persist, Run  # noqa: E402
from test_seed import expected_join  # noqa: E402

# The guide's join, into a table of the mart.
JOIN = """
CREATE OR REPLACE TABLE engagement AS
SELECT a.id, m.metric, m.value
FROM read_parquet('s3://sm-default-processed/metrics/*.parquet') m
JOIN read_json('s3://sm-default-processed/knowledge/*.json') a ON a.id = m.asset_id
WHERE m.metric = 'engagement_score'
"""
OPTIONS = {"start_to_close_timeout": timedelta(minutes=2), "heartbeat_timeout": timedelta(seconds=5)}
QUICKLY = RetryPolicy(initial_interval=timedelta(milliseconds=200), backoff_coefficient=1.5)


@workflow.defn
class Engagement:
    @workflow.run
    async def run(self, table: str) -> dict:
        await workflow.execute_activity("tarn_run", Run(JOIN), **OPTIONS, retry_policy=QUICKLY)
        await workflow.execute_activity("tarn_snapshot", f"for-{table.replace('_', '-')}", **OPTIONS, retry_policy=QUICKLY)
        work = Persist("FROM engagement", connection="main", table=table, mode="append")
        return await workflow.execute_activity("tarn_persist", work, **OPTIONS, retry_policy=QUICKLY)


@workflow.defn
class One:
    @workflow.run
    async def run(self, sql: str) -> dict:
        return await workflow.execute_activity("tarn_run", Run(sql), **OPTIONS, retry_policy=QUICKLY)


@pytest.fixture(scope="module")
def connected(tmp_path_factory, postgres):
    server = Server(tmp_path_factory.mktemp("temporal-node"), {"TARN_POSTGRES_MAIN": postgres.url()})
    server.put_tour_data()
    yield server.start()
    server.stop()


@pytest.fixture
def table(postgres):
    name = f"engagement_{uuid.uuid4().hex[:8]}"
    postgres.rows(f"CREATE TABLE {name} (id text, metric text, value float8)")
    yield name
    postgres.rows(f"DROP TABLE {name}")


def worker(client, mart, queue):
    settings = Settings.load(f"tarn://{mart.token}@{mart.server.address}/{mart.name}")
    # The sandbox loads all that a workflow's module imports again, DuckDB too; these workflows do nothing that it would catch.
    return Worker(client, task_queue=queue, workflows=[Engagement, One], activities=Activities(settings).all(), workflow_runner=UnsandboxedWorkflowRunner())


def start(client, workflow_run, argument, queue):
    return client.start_workflow(workflow_run, argument, id=f"w-{uuid.uuid4().hex}", task_queue=queue)


def test_a_workflow_joins_in_the_mart_and_lands_in_postgres(connected, temporal, postgres, table):
    """S18."""
    mart = Mart.fresh(connected)

    async def run():
        client = await temporal.client()
        async with worker(client, mart, table):
            return await (await start(client, Engagement.run, table, table)).result()

    done = asyncio.run(run())
    expected = expected_join()
    assert done["rows"] == len(expected) and done["replayed"] is False
    assert sorted(postgres.rows(f"SELECT id, metric, value FROM {table}")) == sorted(expected)
    assert [found["name"] for found in mart.json("GET", "/snapshots")["snapshots"]] == [f"for-{table.replace('_', '-')}"]


def test_what_dies_under_workflows_neither_loses_nor_doubles_a_row(connected, temporal, postgres, table):
    mart = Mart.fresh(connected)
    expected = len(expected_join())
    runs = 6

    async def run():
        client = await temporal.client()
        handles = [await start(client, Engagement.run, table, table) for _ in range(runs)]
        for step in range(4):
            # A worker is dropped in the middle of what it does, and another one takes over.
            async with worker(client, mart, table):
                await asyncio.sleep(0.2 * step)  # not awaited: the moment is what is tried
                if step == 1:
                    await asyncio.to_thread(connected.kill)
                    await asyncio.to_thread(connected.start)
                    mart.server = connected
                if step == 2:
                    await asyncio.to_thread(postgres.stop)
                    await asyncio.to_thread(postgres.start)
        async with worker(client, mart, table):
            return await asyncio.gather(*(handle.result() for handle in handles))

    connected.listen = connected.address  # where the workers look for it
    answers = asyncio.run(run())
    assert [answer["rows"] for answer in answers] == [expected] * runs
    assert postgres.rows(f"SELECT count(*) FROM {table}") == [(expected * runs,)]


def test_what_can_t_succeed_is_not_tried_again(connected, temporal, table):
    mart = Mart.fresh(connected)

    async def run():
        client = await temporal.client()
        async with worker(client, mart, table):
            handle = await start(client, One.run, "SELECT nothing FROM nowhere", table)
            with pytest.raises(WorkflowFailureError) as told:
                await handle.result()
            cause = told.value.cause.cause
            attempts = [event async for event in handle.fetch_history_events() if event.HasField("activity_task_started_event_attributes")]
            return cause, attempts[-1].activity_task_started_event_attributes.attempt

    cause, attempt = asyncio.run(run())
    assert cause.type == "sql" and "nowhere" in str(cause) and attempt == 1


def test_a_cancelled_workflow_stops_its_query(connected, temporal, table):
    from marts import FOREVER
    from processes import engines_work

    mart = Mart.fresh(connected)

    async def run():
        client = await temporal.client()
        async with worker(client, mart, table):
            handle = await start(client, One.run, FOREVER, table)
            deadline = time.monotonic() + 30
            while not await asyncio.to_thread(engines_work, connected.process.pid):
                assert time.monotonic() < deadline
            await handle.cancel()
            with pytest.raises(WorkflowFailureError):
                await handle.result()
            while await asyncio.to_thread(engines_work, connected.process.pid):
                assert time.monotonic() < deadline + 30, "the query goes on"

    asyncio.run(run())
