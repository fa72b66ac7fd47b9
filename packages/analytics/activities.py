"""Activities for workers of Temporal: SQL in a mart, snapshots of it, results into Postgres. Wants the extra `temporal`.

    worker = Worker(client, task_queue="analytics", workflows=[...], activities=Activities().all())

Each runs once, however often it is tried: its idempotency key is made of the workflow's run and the activity's id. It heartbeats with the
progress of its query, and a workflow that is cancelled stops the query. Errors that can't go away by trying again are not retryable;
their type is the server's code, such as `sql` or `forbidden`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from temporalio import activity
from temporalio.exceptions import ApplicationError

from .config import Settings
from .persist import PersistMode
from .rest import Refused, Rest, Unreachable

# So often progress is asked for and told.
HEARTBEAT_SECONDS = 2.0


@dataclass
class Run:
    """SQL: a statement, or a script."""

    sql: str
    parameters: list[Any] | None = None
    timeout_ms: int | None = None


@dataclass
class Persist:
    """A query's result into a table of Postgres."""

    sql: str
    connection: str
    table: str
    mode: PersistMode
    key: list[str] = field(default_factory=list)
    parameters: list[Any] | None = None


class Activities:
    """Of the mart of `settings`, by default that of `TARN_DSN`, with the profile `batch` unless the DSN names another."""

    def __init__(self, settings: Settings | str | None = None) -> None:
        self._rest = Rest(settings)
        self._rest.headers.setdefault("tarn-profile", "batch")

    def all(self) -> Sequence[Callable[..., Any]]:
        """For `Worker(activities=…)`."""
        return [self.run, self.persist, self.snapshot]

    @activity.defn(name="tarn_run")
    async def run(self, work: Run) -> dict[str, Any]:
        """Runs it; `columns`, `rows`, `row_count` of the last result, at most 1,000 rows. For what reads much, persist it."""
        body = {"sql": work.sql, "params": work.parameters, "timeout_ms": work.timeout_ms, "max_rows": 1000, "at": self._rest.at}
        return await self._watched("/query", body, {"idempotency-key": _key()})

    @activity.defn(name="tarn_persist")
    async def persist(self, work: Persist) -> dict[str, Any]:
        """Writes it; `rows`, `checksum`, `position`, `replayed`."""
        to = {"connection": work.connection, "table": work.table, "mode": work.mode, "key": work.key}
        body = {"sql": work.sql, "params": work.parameters, "postgres": to, "idempotency_key": _key(), "at": self._rest.at}
        return await self._watched("/persist", body, {})

    @activity.defn(name="tarn_snapshot")
    async def snapshot(self, name: str) -> dict[str, Any]:
        """Names the present moment; one that has the name already stays as it is."""
        try:
            return await self._asked("POST", "/snapshots", {"name": name})
        except ApplicationError as error:
            if error.type != "conflict":
                raise
            listed = await self._asked("GET", "/snapshots")
            return next(dict(found) for found in listed["snapshots"] if found["name"] == name)

    async def _watched(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> dict[str, Any]:
        """A call that runs a query: heartbeats meanwhile, and stops it when the activity is cancelled."""
        id = str(uuid.uuid4())
        asked = asyncio.ensure_future(self._asked("POST", path, body, {**headers, "tarn-query-id": id}))
        try:
            while not (await asyncio.wait([asked], timeout=HEARTBEAT_SECONDS))[0]:
                activity.heartbeat(await self._progress(id))
            return asked.result()
        except asyncio.CancelledError:
            await asyncio.shield(self._stop(id, asked))
            raise

    async def _progress(self, id: str) -> float | None:
        try:
            told = await asyncio.to_thread(self._rest.call, "GET", f"/v1/queries/{id}", timeout=5)
        except (Refused, Unreachable):
            return None  # not begun, or over
        progress = told.get("progress")
        return None if progress is None else float(progress)

    async def _stop(self, id: str, asked: asyncio.Future[dict[str, Any]]) -> None:
        try:
            await asyncio.to_thread(self._rest.call, "DELETE", f"/v1/queries/{id}", timeout=10)
        except (Refused, Unreachable):
            pass  # it is over
        # What became of it is the next attempt's to find out, by the key.
        await asyncio.wait([asked], timeout=10)

    async def _asked(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = await asyncio.to_thread(self._rest.call, method, path, body, headers)
            return answer
        except Refused as refused:
            # What may have been done is found again under its key.
            final = not refused.retryable and refused.outcome == "none"
            raise ApplicationError(str(refused), type=refused.code, non_retryable=final) from None
        except Unreachable as error:
            raise ApplicationError(str(error), type="unavailable") from None


def _key() -> str:
    info = activity.info()
    return f"{info.workflow_id}/{info.workflow_run_id}/{info.activity_id}"
