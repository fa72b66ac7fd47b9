"""Small statements from compiled clients: `SELECT 1`, and single-row commits, against DuckDB in the process of the client."""

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path

import data
from report import Figure

SECONDS = "4"
ROUNDS = 3
INSERT = "INSERT INTO events VALUES ({i}, 'something happened')"
CREATE = "CREATE TABLE events (id BIGINT, what VARCHAR)"


def program(name):
    return Path(os.environ["TARN_BINARY"]).parent / "examples" / name


def load(server, connections, body):
    """One run of the load generator."""
    return run(
        [program("load"), "--address", server.address, "--path", data.PATH, "--connections", connections, "--seconds", SECONDS]
        + ["--body", json.dumps(body)],
        {**os.environ, "TARN_TOKEN": server.token},
    )


def peer(db, connections, sql, setup=None):
    """The same on DuckDB in-process."""
    extra = ["--setup", setup] if setup else []
    return run([program("peer"), "--db", db, "--connections", connections, "--seconds", SECONDS, "--sql", sql, *extra], os.environ)


def run(command, environment):
    result = subprocess.run([str(word) for word in command], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["errors"] == 0, report["first_error"]
    return report


def best(runs):
    return max(runs, key=lambda report: report["per_second"])


def shown(report):
    return f"{report['per_second']:,.0f}/s, p50 {report['p50_ms']:.2f} ms, p99 {report['p99_ms']:.1f} ms"


def selects(server):
    figures = []
    for connections, want in ((1, "≥ 0.4"), (32, "≥ 0.7")):
        ours, peers = [], []
        for _ in range(ROUNDS):
            peers.append(peer(":memory:", connections, "SELECT 1"))
            ours.append(load(server, connections, {"sql": "SELECT 1"}))
        ours, peers = best(ours), best(peers)
        figures.append(
            Figure(f"`SELECT 1`, {plural(connections)}", shown(ours), shown(peers), ours["per_second"] / peers["per_second"], want)
        )
    return [("Small reads; peer: DuckDB in-process, compiled", figures)]


def commits(server, store, weed=None):
    """`local` against in-process with fsync, `object` against `local`, on one file system."""
    server.query(CREATE, mart=data.MART)
    local, durable, peers = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=server.root) as scratch:
            peers.append(peer(f"{scratch}/peer.db", 32, INSERT, CREATE))
        local.append(load(server, 32, {"sql": INSERT, "durability": "local"}))
        durable.append(load(server, 32, {"sql": INSERT, "durability": "object"}))
    local, durable, peers = best(local), best(durable), best(peers)
    upkeep = []
    if weed:
        # With the store frozen nothing is uploaded: what is left is the same node without log and bases.
        weed.process.send_signal(signal.SIGSTOP)
        try:
            alone = best([load(server, 32, {"sql": INSERT, "durability": "local"}) for _ in range(ROUNDS)])
        finally:
            weed.process.send_signal(signal.SIGCONT)
        upkeep = [Figure("`local`; peer: with the store frozen", shown(local), shown(alone), local["per_second"] / alone["per_second"], "≥ 0.9")]
    title = f"Single-row commits on 32 connections, {store}; peer: DuckDB in-process with fsync, then our own `local`"
    return [
        (
            title,
            [
                Figure("`durability=local`", shown(local), shown(peers), local["per_second"] / peers["per_second"], "≥ 0.7"),
                Figure("`durability=object`", shown(durable), shown(local), durable["per_second"] / local["per_second"], "≥ 0.5"),
                *upkeep,
            ],
        )
    ]


def plural(connections):
    return "1 connection" if connections == 1 else f"{connections} connections"
