"""Results of SQL as Arrow, Polars or pandas, and Arrow into a mart.

Where a `source` is asked for, it is one of these; what is opened for a call is closed after it:

- nothing: the mart of `TARN_DSN`; or `Settings`, or another `tarn://` DSN;
- the path of a DuckDB file, as `duckdb_dsn()` gives it: opened read-only;
- a connection, of `connect()` or of `duckdb`: used as it is and left open, its transaction too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import duckdb
import pyarrow as pa
from adbc_driver_manager.dbapi import Connection

from .config import Settings
from .dsn import SCHEME, ConfigError
from .flight import connect
from .pieces import pieces

if TYPE_CHECKING:
    import pandas
    import polars

Opened: TypeAlias = Connection | duckdb.DuckDBPyConnection
Source: TypeAlias = str | os.PathLike[str] | Settings | Opened | None
Mode: TypeAlias = Literal["create", "append", "replace", "create_append"]


def read_arrow(sql: str, parameters: Sequence[object] | None = None, *, source: Source = None) -> pa.Table:
    """All rows of one statement, in memory; `parameters` are for `?` and `$1`.

    From a mart each field's metadata has DuckDB's name of its type as `tarn.duckdb_type`. Times with a zone are in UTC.
    Raises the errors of `adbc_driver_manager` or `duckdb`, and `ConfigError` for a source that can't be used.
    A result that breaks off is an error, never a short table.
    """
    with _opened(source) as connection:
        if isinstance(connection, duckdb.DuckDBPyConnection):
            return connection.execute(sql, parameters).to_arrow_table()
        with connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetch_arrow_table()


def read_polars(sql: str, parameters: Sequence[object] | None = None, *, source: Source = None) -> polars.DataFrame:
    """As `read_arrow`, as a Polars frame. Cast `INTERVAL` and `UNION` to `VARCHAR`: Polars reads neither from Arrow."""
    import polars

    frame = polars.from_arrow(read_arrow(sql, parameters, source=source))
    assert isinstance(frame, polars.DataFrame)  # a Series comes of a single column's array only
    return frame


def read_pandas(sql: str, parameters: Sequence[object] | None = None, *, source: Source = None) -> pandas.DataFrame:
    """As `read_arrow`, as a pandas frame with pyarrow's usual types: integers with NULLs become floats."""
    return read_arrow(sql, parameters, source=source).to_pandas()


def write_arrow(data: Any, table: str, *, schema: str | None = None, mode: Mode = "create", source: Source = None) -> int:
    """Loads `data` into a table of a mart, all of it or nothing; returns how many rows it had.

    `data` is an Arrow table, batch or reader, or any object with an Arrow stream: frames of Polars and pandas, relations of DuckDB.
    Readers are taken piece by piece, so that what is larger than memory can be sent. `schema` is by default `main`, and has to be there.
    `create` wants no such table yet, `append` wants one, `replace` makes it anew, `create_append` takes either.
    Columns go by their names. More than some 500,000 rows may be stored in another order than they came in.

    Raises the errors of `adbc_driver_manager`, and `ConfigError` for a source that is no mart. Over a connection with `autocommit=False`
    the rows are there for others after its `commit()`.
    """
    reader = _reader(data)
    rows = 0

    def counted() -> Iterator[pa.RecordBatch]:
        nonlocal rows
        for piece in pieces(reader):
            rows += piece.num_rows
            yield piece

    with _opened(source) as connection:
        if isinstance(connection, duckdb.DuckDBPyConnection):
            raise ConfigError("rows are written to a mart only: give a `tarn://` DSN or a connection of `connect()`")
        with connection.cursor() as cursor:
            stream = pa.RecordBatchReader.from_batches(reader.schema, counted())
            cursor.adbc_ingest(table, stream, mode=mode, db_schema_name=schema)
    return rows


@contextmanager
def _opened(source: Source) -> Iterator[Opened]:
    if isinstance(source, (Connection, duckdb.DuckDBPyConnection)):
        yield source
    elif source is None or isinstance(source, Settings) or (isinstance(source, str) and source.startswith(SCHEME)):
        with connect(source) as connection:
            yield connection
    else:
        path = os.fspath(source)
        if "://" in path:
            raise ConfigError("a source is a `tarn://` DSN, the path of a DuckDB file, or a connection")
        with duckdb.connect(path, read_only=True) as file:
            # As a mart has it, whatever this machine's zone is.
            file.execute("SET TimeZone = 'UTC'")
            yield file


def _reader(data: Any) -> pa.RecordBatchReader:
    if isinstance(data, pa.RecordBatchReader):
        return data
    if isinstance(data, pa.RecordBatch):
        return pa.RecordBatchReader.from_batches(data.schema, [data])
    if not hasattr(data, "__arrow_c_stream__"):
        raise TypeError(f"`write_arrow` takes Arrow data or what gives an Arrow stream, not `{type(data).__name__}`")
    return pa.RecordBatchReader.from_stream(data)
