"""The peer: `quack`, DuckDB's own remote protocol (HTTP POSTs to `/quack`), version 1.5.5, server and client on loopback.

What it takes, found by trying, since little of it is written down:

- Both ends need `httpfs` loaded beside it: the client for HTTP, the server for random numbers (without it every request is a 500).
- The server is any DuckDB: `CALL quack_serve('quack:localhost:PORT', token => …)` returns and serves from threads of that process. It
  needs a port by number, and listens on localhost only unless told otherwise; a token has at least 4 characters.
- The client attaches it: `ATTACH 'quack:localhost:PORT' AS q (TYPE quack, TOKEN …)`. Then `FROM q.query('…')` runs the text remotely, and
  `SELECT … FROM q.table` scans remotely with the columns that are needed. For whole tables they are as fast as each other; for few rows the
  text is several times faster, since a scan with LIMIT fetches more than the limit. So here it is always the text.
- `INSERT INTO q.table SELECT … FROM arrow` sends chunks of 2048 rows, one request each.
- A connection is one HTTP client: clients that work at once need an attached instance each.
"""

import subprocess
import sys
import time

import duckdb

import data

EXTENSIONS = data.ROOT / "vendor" / "duckdb" / "ext"
TOKEN = "bench-token"
SERVE = """
import duckdb, sys
con = duckdb.connect(sys.argv[1])
for name in ("httpfs", "quack"):
    con.execute(f"LOAD '{sys.argv[2]}/{name}.duckdb_extension'")
con.execute(f"CALL quack_serve('quack:localhost:{sys.argv[3]}', token => '{sys.argv[4]}')")
print("ready", flush=True)
sys.stdin.read()
"""


class Quack:
    """A process that serves a database file; it ends when its input does."""

    def __init__(self, database, port):
        self.port = port
        command = [sys.executable, "-c", SERVE, str(database), str(EXTENSIONS), str(port), TOKEN]
        # Its connections draw progress bars on the error stream, and there is no way to tell them not to.
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout.readline() == "ready\n", "quack does not serve"

    def stop(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)


def attach(port):
    """A client's DuckDB, with the served database as `q`."""
    con = duckdb.connect()
    con.execute("SET enable_progress_bar = false")
    for name in ("httpfs", "quack"):
        con.execute(f"LOAD '{EXTENSIONS}/{name}.duckdb_extension'")
    deadline = time.monotonic() + 10
    while True:
        try:
            con.execute(f"ATTACH 'quack:localhost:{port}' AS q (TYPE quack, TOKEN '{TOKEN}')")
            return con
        except duckdb.IOException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
