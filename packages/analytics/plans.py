"""How DuckDB would run a statement, drawn: `duckdb.query_graphviz`, made of the plan that `EXPLAIN (FORMAT json)` gives.

Plans are trees. In the drawing an arrow leads from an operator to each of those that feed it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
from adbc_driver_manager.dbapi import Connection


def query_graphviz(
    sql: str,
    parameters: Sequence[object] | None = None,
    *,
    connection: duckdb.DuckDBPyConnection | Connection | None = None,
    analyze: bool = False,
) -> str:
    """The plan of one statement in DOT, the language of Graphviz.

    `connection` is one of `duckdb` (by default its own, as for `duckdb.sql`; data frames count as tables there too) or, for a plan made
    by the engine of a mart, one of `analytics.connect()`. A result that was still to be fetched from that connection of `duckdb` is lost.
    `analyze` runs the statement, whatever it does, and adds rows and milliseconds to each operator; without it nothing runs.

    Raises `ValueError` unless `sql` is a single statement, or if its plan is some hundreds of operators deep, and otherwise what running it
    would raise before its first row.
    """
    statement = _only_statement(sql)
    told = _explain(f"EXPLAIN ({'ANALYZE, ' if analyze else ''}FORMAT json) {statement}", parameters, connection)
    try:
        plan = json.loads(told)
    except RecursionError:
        raise ValueError("the plan is too deep to be drawn") from None
    return _dot(_roots(plan))


def _only_statement(sql: str) -> str:
    # An EXPLAIN in front of a script explains its first statement and runs the others.
    statements = duckdb.extract_statements(sql)
    if len(statements) != 1:
        raise ValueError(f"a plan is of one statement, these are {len(statements)}")
    if statements[0].type == duckdb.StatementType.EXPLAIN:
        raise ValueError("the statement says EXPLAIN already; give it without")
    return statements[0].query


def _explain(_text: str, _parameters: Sequence[object] | None, _connection: duckdb.DuckDBPyConnection | Connection | None) -> str:
    # DuckDB looks for data frames among the variables of all frames, this one first: hence the underscores.
    if isinstance(_connection, Connection):
        with _connection.cursor() as _cursor:
            _cursor.execute(_text, _parameters)
            return str(_cursor.fetchall()[-1][-1])
    _duckdb = _connection or duckdb.default_connection()
    with _frames_of_callers(_duckdb):
        return str(_duckdb.execute(_text, _parameters).fetchall()[-1][-1])


@contextmanager
def _frames_of_callers(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Lets DuckDB see the data frames that its caller's caller has, as if it had been called from there."""
    found = connection.execute("SELECT current_setting('python_scan_all_frames')").fetchone()
    if found and found[0]:
        yield
        return
    connection.execute("SET python_scan_all_frames = true")
    try:
        yield
    finally:
        connection.execute("SET python_scan_all_frames = false")


def _roots(plan: Any) -> list[dict[str, Any]]:
    """The operators at the top: EXPLAIN gives a list of them, EXPLAIN ANALYZE an object with figures of the whole around them."""
    if isinstance(plan, list):
        return plan
    roots: list[dict[str, Any]] = []
    for node in plan.get("children", []):
        roots += node.get("children", []) if _name(node) == "EXPLAIN_ANALYZE" else [node]
    return roots


def _dot(roots: list[dict[str, Any]]) -> str:
    nodes: list[str] = []
    edges: list[str] = []
    waiting: list[tuple[dict[str, Any], int | None]] = [(root, None) for root in reversed(roots)]
    while waiting:
        operator, above = waiting.pop()
        number = len(nodes)
        nodes.append(f'  n{number} [label="{_label(operator)}"];')
        if above is not None:
            edges.append(f"  n{above} -> n{number};")
        waiting += [(child, number) for child in reversed(operator.get("children", []))]
    head = ["digraph plan {", '  node [shape=box, fontname="monospace", fontsize=10];']
    return "\n".join([*head, *nodes, *edges, "}"]) + "\n"


def _label(operator: dict[str, Any]) -> str:
    # The name is centred, as `\n` ends a line in DOT; what follows begins at the left, as `\l` does.
    return _escaped(_name(operator)) + r"\n" + "".join(_escaped(line) + r"\l" for line in _details(operator))


def _name(operator: dict[str, Any]) -> str:
    return str(operator.get("name") or operator.get("operator_name") or operator.get("operator_type") or "?").strip()


def _details(operator: dict[str, Any]) -> Iterator[str]:
    for key, value in operator.get("extra_info", {}).items():
        lines = [line for item in (value if isinstance(value, list) else [value]) for line in str(item).splitlines()]
        if len(lines) == 1:
            yield f"{key}: {lines[0]}"
        elif lines:
            yield f"{key}:"
            yield from (f"  {line}" for line in lines)
    if "operator_cardinality" in operator:
        yield f"{operator['operator_cardinality']} rows"
    if "operator_timing" in operator:
        yield f"{operator['operator_timing'] * 1000:.3f} ms"


def _escaped(text: str) -> str:
    """For a quoted string of DOT, in which a backslash begins an escape of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
