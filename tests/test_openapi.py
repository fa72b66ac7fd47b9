"""`/openapi.json` against a running node: calls made up from it by schemathesis, right and wrong ones, and what they may answer."""

import json
import subprocess
import sys
import urllib.request

import pytest

from served import ROOT, Server

# Left out: `positive_data_acceptance` (SQL is a text to a schema, most texts are no SQL), `unsupported_method` (the contract has no 405),
# `ignored_auth` (so many strangers from one address get 429; the tests of identity ask each call), and those for calls that are linked.
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("openapi"))
    server.root.mkdir(exist_ok=True)
    server.start()
    server.query("SELECT 1")
    yield server
    server.stop()


CONFIG = (ROOT / "tests" / "schemathesis.toml").read_text()
# Names that are there, so that calls get past them.
DEV = '[parameters]\n"path.tenant" = "default"\n"path.mart" = "dev"\n'


def schemathesis(served, config):
    (served.root / "schemathesis.toml").write_text(config)
    command = [sys.executable, "-m", "schemathesis.cli", "--no-color", "run", f"http://{served.address}/openapi.json"]
    command += ["--header", f"Authorization: Bearer {served.token}", "--checks", ",".join(CHECKS)]
    # What is a mistake once is a mistake always: the same calls each time.
    command += ["--max-examples", "25", "--seed", "1", "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all"]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=served.root)


def test_it_is_open_to_everybody_and_names_its_version(served):
    with urllib.request.urlopen(f"http://{served.address}/openapi.json", timeout=10) as answer:
        document = json.load(answer)
    assert document["openapi"] == "3.1.0" and len(document["paths"]) > 30


@pytest.mark.parametrize("config", [CONFIG, DEV + CONFIG], ids=["any_names", "the_dev_mart"])
def test_calls_made_up_from_it_get_what_it_says(served, config):
    done = schemathesis(served, config)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
    # The node goes on.
    assert served.rows("SELECT 42") == [[42]]
