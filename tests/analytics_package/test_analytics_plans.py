"""`duckdb.query_graphviz`: plans as DOT, of DuckDB in this process and of a mart's engine."""

import re

import duckdb
import pandas as pd
import pytest

import analytics

NODE = re.compile(r'  n(\d+) \[label="((?:[^"\\]|\\["\\nl])*)"\];')
EDGE = re.compile(r"  n(\d+) -> n(\d+);")


def drawn(dot):
    """Labels by number, and the edges; every line has to be one of DOT as it is written here."""
    head, settings, *lines, end = dot.splitlines()
    assert (head, end) == ("digraph plan {", "}") and settings.startswith("  node [")
    labels, edges = {}, []
    for line in lines:
        if node := NODE.fullmatch(line):
            labels[int(node[1])] = node[2]
        else:
            edges.append(tuple(map(int, EDGE.fullmatch(line).groups())))
    # A forest in which whoever is named is there.
    assert all(above < below for above, below in edges) and len({below for _, below in edges}) == len(edges)
    assert {number for edge in edges for number in edge} <= set(labels)
    return labels, edges


def names(dot):
    return [label.split(r"\n")[0] for label in drawn(dot)[0].values()]


@pytest.fixture
def con():
    with duckdb.connect() as con:
        con.execute("CREATE TABLE t AS SELECT range AS a, range % 7 AS b FROM range(1000)")
        yield con


def test_duckdb_has_it_once_the_package_is_imported():
    assert duckdb.query_graphviz is analytics.query_graphviz
    assert names(duckdb.query_graphviz("SELECT 42 AS answer")) == ["PROJECTION", "DUMMY_SCAN"]


def test_a_join_has_two_inputs(con):
    labels, edges = drawn(duckdb.query_graphviz("SELECT count(*) FROM t JOIN t u ON t.a = u.b WHERE t.b > 2", connection=con))
    join = next(number for number, label in labels.items() if label.startswith("HASH_JOIN"))
    assert len([above for above, _ in edges if above == join]) == 2
    assert len(edges) == len(labels) - 1
    assert any("Table: memory.main.t" in label and "Filters: b>2" in label for label in labels.values())


def test_texts_of_a_query_are_safe_in_the_drawing(con):
    sql = r"""SELECT 'a"]; } \n' || b || e'\n' AS "x\" FROM t WHERE b::VARCHAR <> '\"'"""
    labels, _ = drawn(duckdb.query_graphviz(sql, connection=con))
    assert any(r"\"" in label for label in labels.values())


def test_data_frames_of_the_caller_are_tables():
    frame = pd.DataFrame({"x": [1, 2, 3]})  # noqa: F841 (DuckDB finds it by name)
    before = duckdb.sql("SELECT current_setting('python_scan_all_frames')").fetchone()
    assert "PANDAS_SCAN" in names(duckdb.query_graphviz("SELECT sum(x) FROM frame"))
    with pytest.raises(duckdb.CatalogException):
        duckdb.query_graphviz("SELECT * FROM nowhere")
    assert duckdb.sql("SELECT current_setting('python_scan_all_frames')").fetchone() == before


def test_temporary_tables_and_transactions_of_the_connection_count(con):
    con.execute("BEGIN; CREATE TEMP TABLE own (a INTEGER)")
    assert r'Table: \"temp\".main.own' in duckdb.query_graphviz("FROM own", connection=con)
    with pytest.raises(duckdb.CatalogException):
        duckdb.query_graphviz("FROM nowhere", connection=con)
    con.execute("COMMIT")


def test_nothing_runs_unless_analysed(con):
    duckdb.query_graphviz("DELETE FROM t", connection=con)
    assert con.execute("SELECT count(*) FROM t").fetchone() == (1000,)
    dot = duckdb.query_graphviz("DELETE FROM t WHERE b = 0", connection=con, analyze=True)
    assert con.execute("SELECT count(*) FROM t").fetchone() == (857,)
    assert names(dot)[0] == "DELETE" and r"143 rows\l" in dot and re.search(r"\d+\.\d{3} ms\\l", dot)


def test_parameters_count_in_the_plan(con):
    assert "Filters: a=3" in duckdb.query_graphviz("SELECT * FROM t WHERE a = ?", [3], connection=con)


@pytest.mark.parametrize("sql", ["", "-- nothing", "SELECT 1; DROP TABLE t", "EXPLAIN SELECT 1"])
def test_a_plan_is_of_one_statement(con, sql):
    with pytest.raises(ValueError):
        duckdb.query_graphviz(sql, connection=con)
    assert con.execute("SELECT count(*) FROM t").fetchone() == (1000,)


def test_comments_and_a_semicolon_do_no_harm(con):
    assert "SEQ_SCAN" in names(duckdb.query_graphviz("/* all */ FROM t -- of it\n;\n", connection=con))


def chain(length):
    return "SELECT a FROM t" + "".join(f" INTERSECT SELECT a FROM t WHERE a <> {n}" for n in range(length))


def test_a_deep_plan_is_drawn_and_a_deeper_one_is_refused(con):
    labels, edges = drawn(duckdb.query_graphviz(chain(40), connection=con))
    assert len(edges) == len(labels) - 1 > 100
    with pytest.raises(ValueError, match="too deep"):
        duckdb.query_graphviz(chain(200), connection=con)


def test_a_mart_tells_its_engines_plan(named):
    named.query("CREATE TABLE t AS SELECT range AS a FROM range(1000)")
    with analytics.connect() as connection:
        dot = duckdb.query_graphviz("SELECT count(*) FROM t WHERE a > ?", [10], connection=connection)
        assert "Table: mart.main.t" in dot
        ran = duckdb.query_graphviz("SELECT a FROM t WHERE a < 10", connection=connection, analyze=True)
        assert r"10 rows\l" in ran
