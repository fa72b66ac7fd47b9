"""What is shown and what rings: a real Prometheus over a real server under load, every expression of the dashboard, the tests of the rules."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.parse
import urllib.request

import pytest

from processes import descendants
from served import ROOT, Refused, Server, free_port

MONITORING = ROOT / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana" / "dashboards" / "tarn.json").read_text())
EXPRESSIONS = {f"{panel['title']} {target['refId']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]}
# What Grafana fills in.
FILLED = {"$__rate_interval": "20s", "$tenant": ".*", "$mart": ".*"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Its address, once it has seen a server that did everything that the dashboard shows."""
    root = tmp_path_factory.mktemp("monitoring")
    place = f"127.0.0.1:{free_port()}"
    server = Server(root / "node", {"TARN_METRICS_LISTEN": place, "TARN_CHECKPOINT_WAL": "1KB", "TARN_CHECKPOINT_IDLE_MS": "20"})
    server.root.mkdir()
    config = (MONITORING / "prometheus.yml").read_text()
    (root / "prometheus.yml").write_text(config.replace("duckdb:9642", place).replace("5s", "1s"))
    shutil.copy(MONITORING / "rules.yml", root)
    port = free_port()
    command = ["prometheus", f"--config.file={root}/prometheus.yml", f"--storage.tsdb.path={root}/data", f"--web.listen-address=127.0.0.1:{port}"]
    server.start()
    with open(root / "prometheus.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
        server.stop()


def work(server):
    """Something for each panel."""
    # The engine may have been killed just now: it comes back by itself.
    with contextlib.suppress(Refused):
        server.query("CREATE OR REPLACE TABLE t AS SELECT range AS a FROM range(100000)")
        server.query("INSERT INTO t VALUES (1)")
        server.query("COPY (FROM t) TO 's3://sm-default-analytics/t.parquet'")
        server.query("FROM 's3://sm-default-analytics/t.parquet' LIMIT 1")
        base = "/v1/tenants/default/marts/dev"
        server.request("POST", f"{base}/snapshots", {"name": f"s{time.monotonic_ns()}"}).close()
        server.request("POST", f"{base}/verify", {"trial": True}).close()
        server.query("SELECT nothing FROM t")


def ask(address, path, **parameters):
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)["data"]


@pytest.mark.parametrize("title", EXPRESSIONS)
def test_every_panel_shows_something(prometheus, title):
    """S24."""
    address, server = prometheus
    expression = EXPRESSIONS[title]
    for name, value in FILLED.items():
        expression = expression.replace(name, value)
    # Rates want two scrapes, and restarts want an engine that ended.
    end_time = time.monotonic() + 60
    while time.monotonic() < end_time:
        with contextlib.suppress(OSError):
            if any(float(sample["value"][1]) == float(sample["value"][1]) for sample in ask(address, "query", query=expression)["result"]):
                return
        work(server)
        if "restarts" in expression:
            # Any of them may be a blank one.
            for pid in descendants(server.process.pid):
                os.kill(pid, signal.SIGKILL)
    pytest.fail(f"{expression} is empty")


def test_recording_rules_have_values_and_no_rule_fails(prometheus):
    address, server = prometheus
    end_time = time.monotonic() + 60
    names = re.findall(r"record: (\S+)", (MONITORING / "rules.yml").read_text())
    assert len(names) == 4
    missing = names
    while missing and time.monotonic() < end_time:
        work(server)
        with contextlib.suppress(OSError):
            missing = [name for name in names if not ask(address, "query", query=name)["result"]]
    assert not missing
    rules = [rule for group in ask(address, "rules")["groups"] for rule in group["rules"]]
    assert len(rules) == 11 and all(rule["health"] == "ok" for rule in rules), rules


def test_each_alert_rings_when_it_should_and_has_a_runbook():
    subprocess.run(["promtool", "test", "rules", MONITORING / "rules_test.yml"], check=True)
    tested = set(re.findall(r"alertname: (\w+)\n        exp_alerts", (MONITORING / "rules_test.yml").read_text()))
    headings = set(re.findall(r"^## (\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    alerts = set(re.findall(r"alert: (\w+)", (MONITORING / "rules.yml").read_text()))
    assert alerts == tested and alerts <= headings


def test_what_compose_and_grafana_name_is_there():
    assert json.loads((MONITORING / "grafana" / "dashboards" / "tarn.json").read_text())["uid"] == "tarn"
    uid = re.search(r"uid: (\S+)", (MONITORING / "grafana/provisioning/datasources/prometheus.yml").read_text()).group(1)
    assert {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel["targets"]} == {uid}
