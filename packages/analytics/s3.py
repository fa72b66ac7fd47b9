"""The object store as a DuckDB of one's own reads it: archives, processed data, anything that is in a bucket rather than in a mart.

SQL on a mart needs none of this: the server has the store's keys, and no client of it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import duckdb

from .dsn import ConfigError

GLOBAL_ENDPOINT = "s3.amazonaws.com"
SECRET_NAME = "tarn_s3"


@dataclass(frozen=True)
class S3Settings:
    """The variables `DUCKDB_S3_…` and `DUCKDB_…_KEY…`; keys are not in its `repr`."""

    endpoint: str | None = None
    """`http(s)://HOST[:PORT]`, used with path style. None, or AWS's global endpoint, means AWS."""
    region: str = "us-east-1"
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    role_arn: str | None = None
    """The role that the server assumes; nothing here assumes it."""

    @classmethod
    def load(cls, environment: Mapping[str, str]) -> S3Settings:
        """From variables by the names that the server reads."""
        return cls(
            endpoint=environment.get("DUCKDB_S3_ENDPOINT"),
            region=environment.get("DUCKDB_S3_REGION", "us-east-1"),
            access_key_id=environment.get("DUCKDB_ACCESS_KEY_ID"),
            secret_access_key=environment.get("DUCKDB_SECRET_ACCESS_KEY"),
            session_token=environment.get("DUCKDB_SESSION_TOKEN"),
            role_arn=environment.get("DUCKDB_S3_ROLE_ARN"),
        )

    def create_secret(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Makes the store readable as `s3://…` for all connections of that DuckDB, until it is closed; `httpfs` must be loaded in it.

        Raises `ConfigError` where the keys are missing, the endpoint can't be read, or the keys are only those to assume a role with.
        """
        connection.execute(self._secret())

    def _secret(self) -> str:
        if self.role_arn:
            raise ConfigError("`DUCKDB_S3_ROLE_ARN` is assumed by the server only; unset it and give temporary keys of that role")
        if not (self.access_key_id and self.secret_access_key):
            raise ConfigError("`DUCKDB_ACCESS_KEY_ID` and `DUCKDB_SECRET_ACCESS_KEY` are both needed to read `s3://` from here")
        options = {"KEY_ID": self.access_key_id, "SECRET": self.secret_access_key, "REGION": self.region}
        if self.session_token:
            options["SESSION_TOKEN"] = self.session_token
        options.update(self._endpoint())
        words = ", ".join(f"{name} {_literal(value)}" for name, value in options.items())
        return f"CREATE OR REPLACE TEMPORARY SECRET {SECRET_NAME} (TYPE s3, {words})"

    def _endpoint(self) -> dict[str, str]:
        if not self.endpoint:
            return {}
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("`DUCKDB_S3_ENDPOINT` looks like `https://HOST:PORT`")
        if parts.hostname == GLOBAL_ENDPOINT:
            return {}
        return {"ENDPOINT": parts.netloc, "URL_STYLE": "path", "USE_SSL": str(parts.scheme == "https").lower()}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
