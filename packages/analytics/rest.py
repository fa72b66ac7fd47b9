"""Calls of the server that no driver has: requests with JSON, and refusals as errors."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from .config import Settings
from .dsn import ConfigError


class Refused(Exception):
    """The server's answer was an error of its contract; `str` is its message and its hint."""

    def __init__(self, status: int, told: Mapping[str, Any]) -> None:
        self.status = status
        self.code: str = told.get("code", "internal")
        self.message: str = told.get("message", "")
        self.hint: str = told.get("hint", "")
        self.retryable: bool = bool(told.get("retryable", False))
        """Whether the same request may go well later; only where nothing of it was done."""
        self.outcome: str = told.get("outcome", "unknown")
        """What became of its writes: `none`, `committed` or `unknown`."""
        super().__init__(f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else ""))


class Unreachable(Exception):
    """No answer, or none that can be read. What became of a write is not known."""

    retryable = True


class Rest:
    """The mart of a DSN over HTTP, for one thread at a time or many."""

    def __init__(self, settings: Settings | str | None = None) -> None:
        settings = settings if isinstance(settings, Settings) else Settings.load(settings)
        dsn = settings.dsn
        if dsn is None or dsn.tenant is None:
            raise ConfigError("no mart: give `tarn://HOST:PORT/TENANT/MART` or set `TARN_DSN`")
        if not dsn.token:
            raise ConfigError("no token: put it into the DSN (`tarn://TOKEN@…`) or set `TARN_TOKEN`")
        self.node = f"{'https' if dsn.tls else 'http'}://{dsn.host}:{dsn.port}"
        self.mart = f"/v1/tenants/{dsn.tenant}/marts/{dsn.mart}"
        self.headers = {"authorization": f"Bearer {dsn.token}", "content-type": "application/json"}
        if dsn.profile:
            self.headers["tarn-profile"] = dsn.profile
        self.at = dsn.at
        self.tls = ssl.create_default_context(cafile=settings.ca_file) if dsn.tls else None

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, timeout: float | None = None) -> Any:
        """JSON to a path of the mart, or from `/v1/…` on of the node, and JSON back. Raises `Refused` and `Unreachable`."""
        url = self.node + (path if path.startswith("/v1/") else self.mart + path)
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {**self.headers, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self.tls) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            try:
                told = json.load(error)
            except ValueError:
                raise Unreachable(f"the server answered {error.code}") from None
            raise Refused(error.code, told) from None
        except (OSError, ValueError) as error:
            raise Unreachable(f"no answer from the server: {error}") from None
