"""The package as it lies in the checkout, and a mart that the environment names as a user's would."""

import sys

import pytest

from served import ROOT

sys.path.insert(0, str(ROOT / "packages"))

VARIABLES = ["TARN_DSN", "TARN_TOKEN", "TARN_ADMIN_TOKEN", "TARN_CA_FILE", "TARN_STATE_DIR"]
VARIABLES += [f"DUCKDB_{name}" for name in ("S3_ENDPOINT", "S3_REGION", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "S3_ROLE_ARN")]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    """The machine's own variables must not decide a test."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def named(mart, monkeypatch):
    """A fresh mart that `TARN_DSN` and `TARN_TOKEN` lead to."""
    monkeypatch.setenv("TARN_DSN", f"tarn://{mart.server.address}/{mart.name}")
    monkeypatch.setenv("TARN_TOKEN", mart.token)
    return mart
