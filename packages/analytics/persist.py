"""Results into Postgres, by the server: in one transaction, once under a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypedDict, cast

from .config import Settings
from .rest import Rest

PersistMode = Literal["create", "append", "replace", "upsert"]


class Persisted(TypedDict):
    rows: int
    checksum: str
    """Of the rows, whatever their order."""
    position: str | None
    """The moment of the mart that they are of."""
    replayed: bool
    """Whether this key had done it before."""


def persist(
    sql: str,
    table: str,
    *,
    connection: str,
    mode: PersistMode,
    key: Sequence[str] = (),
    idempotency_key: str | None = None,
    parameters: Sequence[object] | None = None,
    source: Settings | str | None = None,
    query_id: str | None = None,
) -> Persisted:
    """Writes the result of one query into `table` (or `schema.table`) of a Postgres connection that the server knows by name.

    `key` names the columns that tell rows apart, for `upsert`. With an `idempotency_key` it is done once, however often it is called.
    Raises `Refused` with the server's code, and `Unreachable`.
    """
    rest = Rest(source)
    body: dict[str, Any] = {"sql": sql, "postgres": {"connection": connection, "table": table, "mode": mode, "key": list(key)}}
    body |= {"params": None if parameters is None else list(parameters), "idempotency_key": idempotency_key, "at": rest.at}
    headers = {"tarn-query-id": query_id} if query_id else {}
    return cast(Persisted, rest.call("POST", "/persist", body, headers))
