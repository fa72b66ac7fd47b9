"""The two sample queries that the product grew from, word for word, against the real binary."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb

from served import DATA, Server, binary, free_port

JOIN_OVER_BUCKETS = """\
INSTALL httpfs; LOAD httpfs;
SELECT a.id, m.metric, m.value
FROM read_parquet('s3://sm-default-processed/metrics/*.parquet') m
JOIN read_json('s3://sm-default-processed/knowledge/*.json') a
  ON a.id = m.asset_id
WHERE m.metric = 'engagement_score';
"""

ARROW_TO_POLARS = """\
import duckdb
import polars as pl

con = duckdb.connect("duckdb-dev.db", read_only=True)
df = con.execute("SELECT * FROM metrics.daily LIMIT 100").fetch_arrow_table()
pl_df = pl.from_arrow(df)
"""

DAILY = """
CREATE SCHEMA metrics;
CREATE TABLE metrics.daily AS
SELECT make_date(year, month, day) AS day, carrier, count(*) AS flights, avg(arr_delay) AS mean_delay
FROM read_parquet('s3://sm-default-processed/flights/*.parquet') GROUP BY ALL;
"""


def expected_join():
    """The same join by DuckDB alone, over the files themselves."""
    return duckdb.sql(
        f"""SELECT a.id, m.metric, m.value FROM '{DATA}/metrics/*.parquet' m JOIN '{DATA}/knowledge/*.json' a ON a.id = m.asset_id
            WHERE m.metric = 'engagement_score'"""
    ).fetchall()


def test_metrics_join_knowledge_over_s3_urls(server):
    """S15."""
    answer = server.query(JOIN_OVER_BUCKETS)
    assert [column["name"] for column in answer["columns"]] == ["id", "metric", "value"]
    assert sorted(map(tuple, answer["rows"])) == sorted(expected_join())
    assert answer["row_count"] == len(answer["rows"]) > 100


def test_polars_reads_the_published_file_while_the_server_runs(server):
    """S16."""
    server.query(DAILY)
    published = wait_for_published(server, "SELECT count(*) FROM metrics.daily", lambda count: count > 0)
    program = ARROW_TO_POLARS + "assert pl_df.shape == (100, 4), pl_df.shape\n"
    subprocess.run([sys.executable, "-c", program], cwd=published.parent, check=True)
    # The live mart went on meanwhile.
    assert server.rows("SELECT count(*) FROM metrics.daily") == [[5432]]


def test_the_published_file_is_plain_and_whole_at_any_moment(server):
    """S5."""
    server.query("CREATE TABLE pairs (a BIGINT, b BIGINT)")
    wait_for_published(server, "SELECT count(*) FROM pairs", lambda _: True)
    seen = set()
    for step in range(1, 11):
        server.query(f"INSERT INTO pairs SELECT i, -i FROM range({step * 1000}) t(i)")
        # Both columns of every commit sum to nothing: half a commit, or half a file, would show.
        with duckdb.connect(str(server.state / "duckdb-dev.db"), read_only=True) as con:
            total, count = con.execute("SELECT coalesce(sum(a + b), 0), count(*) FROM pairs").fetchone()
        assert total == 0
        assert count in {sum(range(k + 1)) * 1000 for k in range(step + 1)}
        seen.add(count)
    wait_for_published(server, "SELECT count(*) FROM pairs", lambda count: count == 55_000)
    assert not (server.state / "duckdb-dev.db.wal").exists()


def test_the_mart_is_back_after_the_state_directory_is_gone(server):
    server.query(DAILY)
    server.query("UPDATE metrics.daily SET flights = -flights WHERE carrier = 'AA'")
    before = server.rows("SELECT carrier, sum(flights), round(sum(mean_delay), 6) FROM metrics.daily GROUP BY ALL ORDER BY ALL")
    server.kill()
    shutil.rmtree(server.state)
    server.start()
    assert server.rows("SELECT carrier, sum(flights), round(sum(mean_delay), 6) FROM metrics.daily GROUP BY ALL ORDER BY ALL") == before


def test_commits_are_under_the_tenants_prefix(weed, tmp_path):
    """S7: what a lost machine is restored from lies below `s3://sm-<tenant>-analytics/duckdb/`, and nothing else of the mart does."""
    server = Server(tmp_path, weed.environment(), ["--store", "s3"]).start()
    try:
        server.query("CREATE TABLE t AS SELECT range AS a FROM range(100000)")
    finally:
        server.stop()
    keys = {
        bucket: [item["Key"] for item in weed.client().list_objects_v2(Bucket=bucket).get("Contents", [])]
        for bucket in ("sm-default-analytics", "sm-default-processed", "sm-default-raw")
    }
    assert keys["sm-default-analytics"] and all(key.startswith("duckdb/dev/") for key in keys["sm-default-analytics"])
    assert not keys["sm-default-processed"] and not keys["sm-default-raw"]


def test_the_variables_of_the_guide_are_the_servers(weed, tmp_path):
    """S10: exactly these four, and a wrong one is noticed."""
    names = ["DUCKDB_S3_ENDPOINT", "DUCKDB_S3_REGION", "DUCKDB_ACCESS_KEY_ID", "DUCKDB_SECRET_ACCESS_KEY"]
    assert sorted(weed.environment()) == sorted(names)

    def doctor(**changed):
        environment = {**{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}, **weed.environment(), **changed}
        return subprocess.run([binary(), "doctor", "--store", "s3"], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)

    assert doctor().returncode == 0, doctor()
    assert doctor(DUCKDB_S3_ENDPOINT=f"http://127.0.0.1:{free_port()}").returncode == 1
    assert doctor(DUCKDB_SECRET_ACCESS_KEY="wrong").returncode == 1


def wait_for_published(server, sql, wanted):
    """The file is replaced by rename a little after a commit: look until it shows what was asked for."""
    path = Path(server.state / "duckdb-dev.db")
    deadline = time.monotonic() + 60
    problem = "not there"
    while time.monotonic() < deadline:
        if path.exists():
            try:
                with duckdb.connect(str(path), read_only=True) as con:
                    problem = con.execute(sql).fetchone()[0]
                if wanted(problem):
                    return path
            except duckdb.CatalogException as error:
                problem = error  # published before the table was made
        wait_for_rename(path)
    raise AssertionError(f"the published file did not catch up: {problem}\n{server.log()}")


def wait_for_rename(path):
    before = identity(path)
    deadline = time.monotonic() + 5
    while identity(path) == before and time.monotonic() < deadline:
        time.sleep(0.02)


def identity(path):
    try:
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns
    except FileNotFoundError:
        return None
