"""Settings from the environment and a DSN, without a server."""

from pathlib import Path

import duckdb
import pytest

from analytics import ConfigError, Dsn, S3Settings, Settings, connect, duckdb_dsn


def test_all_parts_of_a_dsn():
    dsn = Dsn.parse("tarn://secret@node:8642/acme/sales?tls=true&at=2026-01-31T12:00:00%2B01:00&profile=batch")
    assert (dsn.host, dsn.port, dsn.tenant, dsn.mart, dsn.token) == ("node", 8642, "acme", "sales", "secret")
    assert (dsn.tls, dsn.at, dsn.profile) == (True, "2026-01-31T12:00:00+01:00", "batch")
    assert dsn.flight_uri == "grpc+tls://node:8642"


def test_a_dsn_may_leave_the_mart_and_the_port_to_others():
    dsn = Dsn.parse("tarn://[::1]")
    assert (dsn.host, dsn.port, dsn.tenant, dsn.mart, dsn.is_local) == ("[::1]", 80, None, None, True)
    assert Dsn.parse("tarn://node?tls=true").port == 443


def test_a_printed_dsn_reads_back_without_its_token():
    dsn = Dsn.parse("tarn://secret@node:8642/acme/sales?profile=batch&at=before%20the%20load%26&tls=true")
    assert "secret" not in f"{dsn} {dsn!r} {Settings(dsn)!r}"
    assert Dsn.parse(str(dsn)) == Dsn.parse(str(dsn).replace("tarn://", "tarn://@"))
    assert Dsn.parse(str(dsn)).at == dsn.at == "before the load&"


@pytest.mark.parametrize(
    "wrong",
    [
        "http://x/a/b",
        "tarn://",
        "tarn:///a/b",
        "tarn://h/a",
        "tarn://h/a/b/c",
        "tarn://h/A/b",
        "tarn://h/-a/b",
        f"tarn://h/a/{'b' * 51}",
        "tarn://h:port/a/b",
        "tarn://h:65536/a/b",
        "tarn://h/a/b?tls=1",
        "tarn://h/a/b?tls",
        "tarn://h/a/b?x=y",
        "tarn://h/a/b?at=%ff",
        "tarn://h/a/b?at=%zz",
    ],
)
def test_wrong_dsns_are_refused(wrong):
    with pytest.raises(ConfigError):
        Dsn.parse(wrong)


@pytest.mark.parametrize(
    "dsn, environment, token",
    [
        ("tarn://secret-1@node:1/a/b", {"TARN_TOKEN": "secret-2", "TARN_ADMIN_TOKEN": "secret-3"}, "secret-1"),
        ("tarn://node:1/a/b", {"TARN_TOKEN": "secret-2", "TARN_ADMIN_TOKEN": "secret-3"}, "secret-2"),
        ("tarn://node:1/a/b", {"TARN_TOKEN": "", "TARN_ADMIN_TOKEN": "secret-3"}, "secret-3"),
        ("tarn://node:1/a/b", {}, None),
        ("tarn://localhost:1/a/b", {}, "secret-4"),
    ],
)
def test_where_the_token_is_found(tmp_path, dsn, environment, token):
    (tmp_path / "admin-token").write_text("secret-4\n")
    settings = Settings.load(dsn, {"TARN_STATE_DIR": str(tmp_path), **environment})
    assert settings.dsn.token == token
    assert "secret" not in repr(settings)


def test_a_given_dsn_wins_over_the_variable(monkeypatch):
    monkeypatch.setenv("TARN_DSN", "tarn://from-environment:1/a/b")
    assert Settings.load().dsn.host == "from-environment"
    assert Settings.load("tarn://given:1/a/b").dsn.host == "given"


def test_every_variable_of_the_object_store_is_read():
    environment = {
        "DUCKDB_S3_ENDPOINT": "https://s3.amazonaws.com",
        "DUCKDB_S3_REGION": "eu-central-1",
        "DUCKDB_ACCESS_KEY_ID": "key",
        "DUCKDB_SECRET_ACCESS_KEY": "hidden",
        "DUCKDB_SESSION_TOKEN": "session",
        "DUCKDB_S3_ROLE_ARN": "arn:aws:iam::1:role/r",
    }
    s3 = Settings.load(environment=environment).s3
    assert s3 == S3Settings("https://s3.amazonaws.com", "eu-central-1", "key", "hidden", "session", "arn:aws:iam::1:role/r")
    assert "hidden" not in repr(s3) and "session='" not in repr(s3)
    assert Settings.load(environment={}).s3 == S3Settings(region="us-east-1")


def test_without_anything_set_the_published_file_is_the_development_one(monkeypatch):
    assert duckdb_dsn() == "volumes/duckdb/duckdb-dev.db"
    monkeypatch.setenv("TARN_STATE_DIR", "/srv/tarn")
    assert duckdb_dsn() == "/srv/tarn/duckdb-dev.db"
    assert duckdb_dsn("sales", Settings(state_dir=Path("here"))) == "here/duckdb-sales.db"
    with pytest.raises(ConfigError):
        duckdb_dsn("../dev")


@pytest.mark.parametrize(
    "dsn, options, told",
    [
        (None, {}, "TARN_DSN"),
        ("tarn://node:1/a/b", {}, "TARN_TOKEN"),
        ("tarn://t@node:1/a/b?at=loaded", {"autocommit": False}, "earlier moment"),
        ("tarn://t@node:1/a/b?tls=true", {}, "TARN_CA_FILE"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_sent(monkeypatch, tmp_path, dsn, options, told):
    monkeypatch.setenv("TARN_CA_FILE", str(tmp_path / "nothing.pem"))
    with pytest.raises(ConfigError, match=told):
        connect(dsn, **options)


@pytest.mark.parametrize(
    "s3, told",
    [
        (S3Settings(), "DUCKDB_ACCESS_KEY_ID"),
        (S3Settings(access_key_id="k", secret_access_key="s", role_arn="arn"), "DUCKDB_S3_ROLE_ARN"),
        (S3Settings(access_key_id="k", secret_access_key="s", endpoint="host:9000"), "DUCKDB_S3_ENDPOINT"),
    ],
)
def test_a_secret_that_could_not_work_is_not_made(s3, told):
    with duckdb.connect() as con, pytest.raises(ConfigError, match=told):
        s3.create_secret(con)
