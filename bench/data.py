"""The mart that is measured, and its data: TPC-H's lineitem at scale factor 1, made once into `vendor/data/`.

As Parquet for the server, as a database file for DuckDB in-process.
"""

from pathlib import Path

import duckdb

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / "vendor" / "data" / "tpch-sf1"
PARQUET = DIRECTORY / "lineitem.parquet"
DATABASE = DIRECTORY / "lineitem.duckdb"
ROWS = 6_001_215
# Not the dev mart: that one is published as a file after each change, which is not what is measured.
MART = "default/bench"
PATH = "/v1/tenants/default/marts/bench/query"


def make():
    """Some 40 seconds the first time, nothing afterwards."""
    if PARQUET.exists() and DATABASE.exists():
        return
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    fresh = DIRECTORY / "fresh.duckdb"
    fresh.unlink(missing_ok=True)
    with duckdb.connect(str(fresh)) as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(f"LOAD '{ROOT}/vendor/duckdb/ext/tpch.duckdb_extension'")
        con.execute("CALL dbgen(sf = 1)")
        for (table,) in con.execute("SELECT table_name FROM duckdb_tables() WHERE table_name <> 'lineitem'").fetchall():
            con.execute(f"DROP TABLE {table}")
        assert con.execute("SELECT count(*) FROM lineitem").fetchone() == (ROWS,)
        con.execute(f"COPY lineitem TO '{DIRECTORY}/fresh.parquet' (FORMAT parquet)")
    (DIRECTORY / "fresh.parquet").replace(PARQUET)
    fresh.replace(DATABASE)


def prepare(server):
    """The mart has the table `lineitem`."""
    sql = "CREATE TABLE IF NOT EXISTS lineitem AS FROM read_parquet('s3://sm-default-processed/tpch/lineitem.parquet')"
    server.query(sql, mart=MART, timeout_ms=600_000)
