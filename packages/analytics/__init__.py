"""Marts of a Tarn server from Python: one set of names for the server (`tarn://…`, over Arrow Flight SQL) and for its published files.

Importing it adds `query_graphviz` to the module `duckdb`, which has no function of that name.
"""

import duckdb as _duckdb

from .config import ConfigError, S3Settings, Settings, duckdb_dsn
from .dsn import Dsn
from .flight import connect
from .frames import read_arrow, read_pandas, read_polars, write_arrow
from .persist import persist
from .plans import query_graphviz
from .rest import Refused, Unreachable

__all__ = [
    "ConfigError",
    "Dsn",
    "Refused",
    "S3Settings",
    "Settings",
    "Unreachable",
    "connect",
    "duckdb_dsn",
    "persist",
    "query_graphviz",
    "read_arrow",
    "read_pandas",
    "read_polars",
    "write_arrow",
]

# A DuckDB that comes to have one of its own keeps it.
if not hasattr(_duckdb, "query_graphviz"):
    setattr(_duckdb, "query_graphviz", query_graphviz)
