"""What the past of a mart costs: snapshots, branches, bases after small changes, lookups at an earlier moment, opening a long log."""

import json
import subprocess
import time
import urllib.request

import data
from replication import run, seconds
from report import Figure
from statements import program

ROWS = 30_000_000  # of an id and four incompressible 64-bit columns: a file of over 1 GB
PAST = "default/past"
ROUNDS = 3


def measure(server, weed, store):
    """Everything on one mart of 1 GB."""
    columns = ", ".join(f"(random() * 9e18)::BIGINT AS c{i}" for i in range(4))
    server.create_mart(PAST)
    run(server, "CREATE TABLE small(a INT)", PAST)
    run(server, f"CREATE OR REPLACE TABLE big AS SELECT range AS id, {columns} FROM range({ROWS})", PAST)
    settled(server)
    run(server, "INSERT INTO small VALUES (1)", PAST)
    before = call_get(server, "history?limit=1")["moments"][0]["position"]
    yield names(server, weed, store)
    yield append(server, weed, store)
    yield lookups(server, store, before)
    if not weed:
        yield long_log()


def long_log():
    counted = json.loads(subprocess.run([program("long_log")], check=True, capture_output=True, text=True).stdout)
    return (
        f"Opening a mart whose log has {counted['records']:,} records, in memory",
        [Figure("LIST requests", str(counted["lists"]), f"{counted['gets'] + counted['heads']} GET and HEAD", counted["lists"], "≤ 2")],
    )


def names(server, weed, store):
    size = stored(server, weed)
    snapshots, branches, grown = [], [], []
    for round_ in range(ROUNDS):
        snapshots.append(seconds(lambda: call(server, "POST", "snapshots", {"name": f"s{round_}"})))
        branches.append(seconds(lambda: call(server, "POST", "branches", {"name": f"branch-{round_}"})))
        grown.append(stored(server, weed))
    objects = max(after - before for before, after in zip([size, *grown], grown))
    return (
        f"Names of a mart of {size / 1e9:.1f} GB, {store}; peer: the limit that was set",
        [
            Figure("Snapshot", f"{min(snapshots) * 1e3:.0f} ms", "100 ms", min(snapshots) / 0.1, "≤ 1"),
            Figure("Branch", f"{min(branches) * 1e3:.0f} ms", "100 ms", min(branches) / 0.1, "≤ 1"),
            Figure("New objects of both", f"{objects / 1e3:.1f} KB", "200 KB", objects / 200e3, "≤ 1"),
        ],
    )


def append(server, weed, store):
    size = stored(server, weed)
    # In pieces that go through the log.
    for _ in range(4):
        values = "(random() * 9e18)::BIGINT, (random() * 9e18)::BIGINT, (random() * 9e18)::BIGINT, (random() * 9e18)::BIGINT"
        run(server, f"INSERT INTO big SELECT range, {values} FROM range({ROWS // 400})", PAST)
    settled(server)
    grown = stored(server, weed) - size
    return (
        f"What 1% more rows upload with their base, {store}; peer: all objects before",
        [Figure("1% appended", f"{grown / 1e6:.1f} MB", f"{size / 1e6:,.0f} MB", grown / size, "≤ 0.05")],
    )


def lookups(server, store, position):
    lookup = f"SELECT c0 FROM big WHERE id = {ROWS // 2}"
    live = run(server, lookup, PAST)["rows"]
    fetched = -fetched_bytes(server)
    cold = seconds(lambda: at(server, lookup, position, live))
    fetched += fetched_bytes(server)
    warm = min(seconds(lambda: at(server, lookup, position, live)) for _ in range(20))
    direct = min(seconds(lambda: run(server, lookup, PAST)) for _ in range(20))
    size = ROWS * 5 * 8
    return (
        f"A point lookup at an earlier moment of a mart of 1 GB, {store}",
        [
            Figure("Bytes fetched by the first one; peer: the mart's", f"{fetched / 1e6:.1f} MB", f"{size / 1e6:,.0f} MB", fetched / size, "≤ 0.02"),
            Figure("Again; peer: the same on the live mart", f"{warm * 1e3:.1f} ms", f"{direct * 1e3:.1f} ms", warm / direct, "≤ 3"),
            Figure("First answer, engine's start included; peer: again", f"{cold * 1e3:.0f} ms", f"{warm * 1e3:.1f} ms", cold / warm),
        ],
    )


def at(server, sql, position, expected):
    answer = run(server, sql, PAST, at=position)
    assert answer["rows"] == expected, answer


def call(server, method, path, body):
    tenant, mart = PAST.split("/")
    request = urllib.request.Request(
        f"http://{server.address}/v1/tenants/{tenant}/marts/{mart}/{path}",
        json.dumps(body).encode(),
        {"authorization": f"Bearer {server.token}"},
        method=method,
    )
    return json.load(urllib.request.urlopen(request, timeout=600))


def settled(server):
    """Waits until the mart's log is folded and its base is in the object store."""
    while True:
        listed = call_get(server, "history?limit=1")
        moments = listed["moments"]
        if moments and moments[0]["what"] == "checkpoint":
            return
        time.sleep(0.5)


def call_get(server, path):
    tenant, mart = PAST.split("/")
    request = urllib.request.Request(
        f"http://{server.address}/v1/tenants/{tenant}/marts/{mart}/{path}",
        headers={"authorization": f"Bearer {server.token}"},
    )
    return json.load(urllib.request.urlopen(request, timeout=60))


def stored(server, weed):
    """Bytes of all replicas' objects."""
    if weed:
        pages = weed.client().get_paginator("list_objects_v2").paginate(Bucket="sm-default-analytics", Prefix="duckdb/")
        return sum(item["Size"] for page in pages for item in page.get("Contents", []))
    root = server.objects / "sm-default-analytics" / "duckdb"
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file())


def fetched_bytes(server):
    request = urllib.request.Request(f"http://{server.address}/metrics", headers={"authorization": f"Bearer {server.token}"})
    text = urllib.request.urlopen(request, timeout=60).read().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith("tarn_past_fetched_bytes_total"))
