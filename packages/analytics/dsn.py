"""`tarn://[TOKEN@]HOST:PORT/TENANT/MART[?profile=…&at=…&tls=true]`: which mart on which node, as whom.

The same DSNs are legal here and on the command line of `tarn`. Nothing here reads the environment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

SCHEME = "tarn://"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,48}[a-z0-9])?")
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


class ConfigError(ValueError):
    """A DSN or a setting that is missing or can't be read; the message says which, and never contains a secret."""


@dataclass(frozen=True)
class Dsn:
    """A parsed DSN. Its token is in neither `str` nor `repr`."""

    host: str
    """Host name or address; IPv6 in brackets."""
    port: int
    """80, or 443 with TLS, where the DSN names none."""
    tenant: str | None = None
    mart: str | None = None
    """None with no tenant: the server takes the token's mart, or the tenant's first."""
    token: str | None = field(default=None, repr=False)
    tls: bool = False
    at: str | None = None
    """An earlier moment, which makes the mart read-only: RFC 3339 time, snapshot name or position."""
    profile: str | None = None
    """The CPU and memory size that queries ask for."""

    @classmethod
    def parse(cls, text: str) -> Dsn:
        """Raises `ConfigError` for what is no DSN, an unknown option, or a name that no tenant or mart can have."""
        if not text.startswith(SCHEME):
            raise _bad("the DSN does not begin with `tarn://`")
        address, _, query = text.removeprefix(SCHEME).partition("?")
        authority, _, path = address.partition("/")
        token, _, place = authority.rpartition("@")
        names = [_name(part) for part in path.split("/") if part]
        if len(names) not in (0, 2):
            raise _bad("the DSN names a tenant and a mart, or neither")
        tenant, mart = names or (None, None)
        options = _options(query)
        tls = options.get("tls", "false")
        if tls not in ("true", "false"):
            raise _bad("`tls` in the DSN wants true or false")
        host, port = _place(place, default_port=443 if tls == "true" else 80)
        return cls(host, port, tenant, mart, token or None, tls == "true", options.get("at"), options.get("profile"))

    @property
    def flight_uri(self) -> str:
        """The address as drivers for Flight SQL want it."""
        return f"grpc+{'tls' if self.tls else 'tcp'}://{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether the node runs on this machine, as far as its name tells."""
        return self.host in _LOOPBACK

    def __str__(self) -> str:
        names = f"/{self.tenant}/{self.mart}" if self.tenant else ""
        options = {"profile": self.profile, "at": self.at, "tls": "true" if self.tls else None}
        query = "&".join(f"{name}={quote(value, safe=':+')}" for name, value in options.items() if value is not None)
        return f"{SCHEME}{self.host}:{self.port}{names}{'?' if query else ''}{query}"


def _place(text: str, default_port: int) -> tuple[str, int]:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/@\s]+)(?::([0-9]{1,5}))?", text)
    if not found:
        raise _bad("the DSN names no host, or one that can't be read")
    port = int(found[2]) if found[2] else default_port
    if not 0 < port < 65536:
        raise _bad("the DSN's port is not between 1 and 65535")
    return found[1], port


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for option in filter(None, query.split("&")):
        name, sign, value = option.partition("=")
        if not sign or name not in ("tls", "at", "profile"):
            raise _bad("unknown option in the DSN; there are `tls`, `at` and `profile`")
        options[name] = _unescaped(value)
    return options


def _unescaped(text: str) -> str:
    """Percent escapes, as in a URL; a `+` stays one, since times with an offset have it."""
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise _bad("an option of the DSN can't be read")
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise _bad("an option of the DSN can't be read") from None


def _name(text: str) -> str:
    if not is_name(text):
        raise _bad("tenants and marts are named with 1 to 50 of `a-z`, `0-9` and `-`, with no hyphen at either end")
    return text


def is_name(text: str) -> bool:
    """Whether a tenant or a mart may be called so."""
    return _NAME.fullmatch(text) is not None


def _bad(why: str) -> ConfigError:
    return ConfigError(f"{why}; a DSN looks like `tarn://HOST:PORT/TENANT/MART`")
