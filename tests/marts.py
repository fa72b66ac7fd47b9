"""A mart of its own for each test, as its clients see it: HTTP, ADBC and `pyarrow.flight` with one token."""

import http.client
import json
import time
import uuid

import adbc_driver_flightsql.dbapi
import pyarrow as pa

import flightsql
from processes import engines_work
from served import Refused

# Never ends by itself: 10^14 pairs.
FOREVER = "SELECT sum(hash(a.range, b.range)) FROM range(10000000) a, range(10000000) b"
ARROW = "application/vnd.apache.arrow.stream"
HEADER = "adbc.flight.sql.rpc.call_header."


class Mart:
    """`default/NAME` on a running server, reached with the node's admin token unless another one is given."""

    def __init__(self, server, name, token=None):
        self.server, self.name, self.token = server, name, token or server.token
        self.tenant, self.mart = name.split("/")
        self.path = f"/v1/tenants/{self.tenant}/marts/{self.mart}"

    @classmethod
    def fresh(cls, server, tenant="default"):
        mart = cls(server, f"{tenant}/m-{uuid.uuid4().hex[:12]}")
        server.create_mart(mart.name)
        return mart

    def drop(self):
        self.server.request("DELETE", self.path).close()

    def with_token(self, token):
        return Mart(self.server, self.name, token)

    def token_of(self, role="writer", tenant=None):
        """A new token of the mart's tenant, or of another one."""
        with self.server.request("POST", "/v1/tokens", {"tenant": tenant or self.tenant, "role": role}) as answer:
            return json.load(answer)["token"]

    # --- HTTP

    def call(self, method, path, body=None, headers=(), base=None):
        """Status, headers and body; `body` is bytes, an iterable of bytes (sent in pieces), or something for JSON."""
        connection = http.client.HTTPConnection(self.server.address, timeout=120)
        sent = {"authorization": f"Bearer {self.token}", **dict(headers)}
        if isinstance(body, (dict, list)):
            body, sent = json.dumps(body).encode(), {"content-type": "application/json", **sent}
        try:
            connection.request(method, (self.path if base is None else base) + path, body, sent)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, method, path, body=None, headers=(), base=None):
        status, _, text = self.call(method, path, body, headers, base)
        if status >= 300:
            raise Refused(status, text.decode())
        return json.loads(text) if text else None

    def query(self, sql, **options):
        return self.json("POST", "/query", {"sql": sql, **options})

    def rows(self, sql, **options):
        return [tuple(row) for row in self.query(sql, **options)["rows"]]

    def arrow(self, sql, **options):
        status, _, body = self.call("POST", "/query", {"sql": sql, **options}, {"accept": ARROW})
        if status >= 300:
            raise Refused(status, body.decode())
        return pa.ipc.open_stream(body).read_all()

    def load(self, table, body, kind, mode="create", headers=(), **parameters):
        """`PUT …/tables/main/TABLE` of a body of that media type."""
        extra = "".join(f"&{name}={value}" for name, value in parameters.items())
        return self.json("PUT", f"/tables/main/{table}?mode={mode}{extra}", body, {"content-type": kind, **dict(headers)})

    def exists(self, table):
        return bool(self.rows(f"SELECT 1 FROM duckdb_tables() WHERE table_name = '{table}'"))

    # --- Flight

    def adbc_options(self, **headers):
        return {
            "adbc.flight.sql.authorization_header": f"Bearer {self.token}",
            f"{HEADER}tarn-mart": self.name,
            **{HEADER + name.replace("_", "-"): value for name, value in headers.items()},
        }

    @property
    def uri(self):
        return f"grpc+tcp://{self.server.address}"

    def adbc(self, autocommit=True, **headers):
        return adbc_driver_flightsql.dbapi.connect(self.uri, db_kwargs=self.adbc_options(**headers), autocommit=autocommit)

    def flight(self, **headers):
        return flightsql.Client(self.server.address, self.token, self.name, headers)

    # --- What runs

    def wait_until_working(self):
        eventually(lambda: engines_work(self.server.process.pid), "an engine that works", 30)

    def wait_until_idle(self):
        eventually(lambda: not engines_work(self.server.process.pid), "engines that have stopped working", 10)


def eventually(probe, what, seconds=10):
    """Asks until the answer is true; returns it."""
    deadline = time.monotonic() + seconds
    while True:
        if found := probe():
            return found
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.005)


def once_free(work):
    """Does it again while it meets a transaction that is just being rolled back."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return work()
        except Exception as error:
            if "onflict" not in str(error) or time.monotonic() > deadline:
                raise
