"""A mart over Arrow Flight SQL by the stock ADBC driver, with the driver's options filled in from the settings."""

from __future__ import annotations

from typing import Literal

import adbc_driver_flightsql.dbapi
from adbc_driver_manager.dbapi import Connection

from .config import Settings
from .dsn import ConfigError, Dsn

Durability = Literal["object", "local"]

# The largest message that the server takes; the driver's own limit is 16 MB, which a single long row can exceed.
MAX_MESSAGE_BYTES = 64 << 20
_HEADER = "adbc.flight.sql.rpc.call_header."


def connect(
    dsn: str | Settings | None = None,
    *,
    autocommit: bool = True,
    durability: Durability | None = None,
    timeout_ms: int | None = None,
) -> Connection:
    """A DB-API 2.0 connection to the mart of `dsn`, by default that of `TARN_DSN`. Close it, or use it in a `with`.

    `autocommit=False` begins a transaction that `commit()` ends; it is not for a DSN with `at`. `durability` says what a write waits for:
    the object store (`object`, the server's default) or only the node's disk (`local`). `timeout_ms` is the deadline of each statement.

    Raises `ConfigError` where there is no DSN, no token, or a `TARN_CA_FILE` that can't be read. Whether the node is there, and knows the
    token, may show only at the first statement, as an error of `adbc_driver_manager`; its `details` hold the server's `tarn-code`.
    """
    settings = dsn if isinstance(dsn, Settings) else Settings.load(dsn)
    if settings.dsn is None:
        raise ConfigError("no DSN: give `tarn://HOST:PORT/TENANT/MART` or set `TARN_DSN`")
    if settings.dsn.at and not autocommit:
        raise ConfigError("there are no transactions at an earlier moment: connect with `autocommit=True`")
    options = _driver_options(settings, settings.dsn)
    headers = {"tarn-durability": durability, "tarn-timeout-ms": None if timeout_ms is None else str(timeout_ms)}
    options.update({_HEADER + name: value for name, value in headers.items() if value is not None})
    return adbc_driver_flightsql.dbapi.connect(settings.dsn.flight_uri, db_kwargs=options, autocommit=autocommit)


def _driver_options(settings: Settings, dsn: Dsn) -> dict[str, str]:
    if not dsn.token:
        raise ConfigError("no token: put it into the DSN (`tarn://TOKEN@…`) or set `TARN_TOKEN`")
    headers = {"tarn-mart": f"{dsn.tenant}/{dsn.mart}" if dsn.tenant else None, "tarn-at": dsn.at, "tarn-profile": dsn.profile}
    options = {_HEADER + name: value for name, value in headers.items() if value is not None}
    options["adbc.flight.sql.authorization_header"] = f"Bearer {dsn.token}"
    options["adbc.flight.sql.client_option.with_max_msg_size"] = str(MAX_MESSAGE_BYTES)
    if dsn.tls and settings.ca_file:
        try:
            options["adbc.flight.sql.client_option.tls_root_certs"] = settings.ca_file.read_text()
        except OSError as error:
            raise ConfigError(f"`TARN_CA_FILE` can't be read: {error.strerror}") from error
    return options
