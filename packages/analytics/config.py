"""Settings of pipelines on marts, from the environment and a DSN: the names that the server and its command line read.

| variable | means |
|---|---|
| `TARN_DSN` | the mart: `tarn://[TOKEN@]HOST:PORT/TENANT/MART[?profile=…&at=…&tls=true]` |
| `TARN_TOKEN`, else `TARN_ADMIN_TOKEN` | the token, where the DSN has none |
| `TARN_CA_FILE` | PEM file of authorities to trust with `tls=true`, instead of the machine's |
| `TARN_STATE_DIR` | the state directory of a node on this machine (default `volumes/duckdb`): published files, and its admin token for a DSN on loopback |
| `DUCKDB_S3_ENDPOINT`, `DUCKDB_S3_REGION`, `DUCKDB_ACCESS_KEY_ID`, `DUCKDB_SECRET_ACCESS_KEY`, `DUCKDB_SESSION_TOKEN`, `DUCKDB_S3_ROLE_ARN` | the object store, for a DuckDB of one's own |

An empty variable counts as none. Nothing is read before it is asked for, and nothing is kept: a changed variable counts at the next call.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from .dsn import ConfigError, Dsn, is_name
from .s3 import S3Settings

__all__ = ["ConfigError", "Dsn", "S3Settings", "Settings", "duckdb_dsn"]

DEFAULT_STATE_DIR = "volumes/duckdb"


@dataclass(frozen=True)
class Settings:
    """What a pipeline needs to reach a mart. Secrets are not in its `repr`."""

    dsn: Dsn | None = None
    """None where neither the caller nor `TARN_DSN` gave one: enough for published files and for S3."""
    ca_file: Path | None = None
    state_dir: Path = Path(DEFAULT_STATE_DIR)
    s3: S3Settings = field(default_factory=S3Settings)

    @classmethod
    def load(cls, dsn: str | None = None, environment: Mapping[str, str] | None = None) -> Settings:
        """From `dsn`, else `TARN_DSN`, and from the other variables of `environment` (default: that of the process).

        The token of `Settings.dsn` is, in this order: the DSN's, `TARN_TOKEN`, `TARN_ADMIN_TOKEN`, and for a DSN on loopback
        the one that the node has put into its state directory. Raises `ConfigError` for a DSN that can't be read.
        """
        given = os.environ if environment is None else environment
        found = {name: value for name, value in given.items() if value}
        state_dir = Path(found.get("TARN_STATE_DIR", DEFAULT_STATE_DIR))
        text = dsn or found.get("TARN_DSN")
        parsed = Dsn.parse(text) if text else None
        if parsed and not parsed.token:
            token = found.get("TARN_TOKEN") or found.get("TARN_ADMIN_TOKEN")
            if not token and parsed.is_local:
                token = _admin_token(state_dir)
            parsed = replace(parsed, token=token)
        ca_file = found.get("TARN_CA_FILE")
        return cls(parsed, Path(ca_file) if ca_file else None, state_dir, S3Settings.load(found))


def duckdb_dsn(mart: str = "dev", settings: Settings | None = None) -> str:
    """The published file of a mart, for `duckdb.connect(duckdb_dsn(), read_only=True)`: `duckdb-{mart}.db` in the state directory.

    A node on this machine publishes the mart of its setting `publish`, by default `default/dev`, and replaces the file a little after each
    commit; a connection goes on showing what was there when the file was opened. Whether the file is there is not looked at.
    Raises `ConfigError` for a name that no mart can have.
    """
    if not is_name(mart):
        raise ConfigError(f"no mart can be called {mart!r}; the file of `default/dev` is that of `dev`")
    return str((settings or Settings.load()).state_dir / f"duckdb-{mart}.db")


def _admin_token(state_dir: Path) -> str | None:
    try:
        return (state_dir / "admin-token").read_text().strip() or None
    except OSError:
        return None
