"""The package as a user gets it: the sample that the product grew from, word for word, and an installation by pip."""

import os
import shutil
import subprocess
import sys
import uuid
import zipfile
from pathlib import Path

import duckdb
import pytest

import analytics
from marts import Mart
from served import ROOT
from test_seed import ARROW_TO_POLARS, DAILY, wait_for_published

PACKAGE = ROOT / "packages" / "analytics"


@pytest.fixture
def daily(node):
    """The dev mart with `metrics.daily`, and its published file with it."""
    dev = Mart(node, "default/dev")
    # The file may still have an earlier test's: this one's has a table that none had before.
    mark = f"metrics.mark_{uuid.uuid4().hex}"
    dev.query(f"DROP SCHEMA IF EXISTS metrics CASCADE; {DAILY}; CREATE TABLE {mark} AS SELECT 1 AS a")
    yield wait_for_published(node, f"SELECT (SELECT count(*) FROM metrics.daily) FROM {mark}", lambda count: count > 0)
    dev.query("DROP SCHEMA metrics CASCADE; DROP TABLE IF EXISTS daily_of_ha")


def run(program, directory, **environment):
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, env={**kept, **environment}, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("first", ["", "import analytics\n"], ids=["alone", "with_the_package"])
def test_the_polars_sample_works_as_written(daily, first):
    program = first + ARROW_TO_POLARS + "assert pl_df.shape == (100, 4), pl_df.shape\n"
    run(program, daily.parent, PYTHONPATH=str(ROOT / "packages"))


def test_the_polars_sample_works_on_the_configured_file(daily, node, monkeypatch):
    """S19."""
    monkeypatch.setenv("TARN_STATE_DIR", str(node.state))
    assert Path(analytics.duckdb_dsn()) == daily
    program = ARROW_TO_POLARS.replace('"duckdb-dev.db"', "duckdb_dsn()")
    assert program != ARROW_TO_POLARS
    program = f"from analytics.config import duckdb_dsn\n{program}assert pl_df.shape == (100, 4), pl_df.shape\n"
    run(program, node.root, PYTHONPATH=str(ROOT / "packages"), TARN_STATE_DIR=str(node.state))


def test_plans_are_inspected_as_written(daily, node):
    """S20. `duckdb.query_graphviz()`, of the sample's query on the sample's connection."""
    with duckdb.connect(str(daily), read_only=True) as con:
        dot = duckdb.query_graphviz("SELECT * FROM metrics.daily LIMIT 100", connection=con)
    assert dot.startswith("digraph") and "metrics.daily" in dot


def test_the_examples_of_its_readme_run(daily, node):
    blocks = (PACKAGE / "README.md").read_text().split("```python\n")[1:]
    program = "\n".join(block.split("```")[0] for block in blocks)
    assert "query_graphviz" in program and "write_arrow" in program
    environment = {"TARN_DSN": f"tarn://{node.address}/default/dev", "TARN_TOKEN": node.token, "TARN_STATE_DIR": str(node.state)}
    run(program, node.root, PYTHONPATH=str(ROOT / "packages"), **environment)


def test_pip_installs_it_with_its_types(tmp_path):
    # A copy, since setuptools leaves files behind where it builds.
    source, target = tmp_path / "source" / "analytics", tmp_path / "target"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    alone = ["--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *alone, "--wheel-dir", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("tarn_analytics-*.whl")
    modules = {f"analytics/{path.name}" for path in PACKAGE.glob("*.py")} | {"analytics/py.typed"}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == modules
    subprocess.run([*pip, "install", *alone, "--target", target, wheel], check=True)
    program = "import analytics, duckdb; print(analytics.__file__); duckdb.query_graphviz('SELECT 1')"
    assert run(program, tmp_path, PYTHONPATH=str(target)).strip() == str(target / "analytics" / "__init__.py")


def test_its_types_hold():
    command = [sys.executable, "-m", "mypy", "--config-file", PACKAGE / "pyproject.toml", "--cache-dir", os.devnull, "--package", "analytics"]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
