"""Fixtures of all Python tests."""

import pytest

from marts import Mart
from postgres import Postgres
from served import Server, Weed
from temporal import Temporal

BUCKETS = ["tarn-control", "sm-default-analytics", "sm-default-processed", "sm-default-raw"]


@pytest.fixture(scope="session")
def weed_process(tmp_path_factory):
    """One S3 server for all tests; each test that wants it gets its buckets empty."""
    weed = Weed(tmp_path_factory.mktemp("weed")).start(BUCKETS)
    yield weed
    weed.stop()


@pytest.fixture
def weed(weed_process):
    client = weed_process.client()
    for bucket in BUCKETS:
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for item in page.get("Contents", []):
                client.delete_object(Bucket=bucket, Key=item["Key"])
    return weed_process


@pytest.fixture(params=["file", "s3"])
def server(request, tmp_path):
    """A fresh node, on the embedded store and on S3, with the tour's data in the tenant's processed bucket."""
    if request.param == "s3":
        weed = request.getfixturevalue("weed")
        server = Server(tmp_path, weed.environment(), ["--store", "s3"])
        server.weed = weed
    else:
        server = Server(tmp_path)
    server.put_tour_data()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def node(tmp_path_factory):
    """One node on the embedded store for all tests of clients."""
    server = Server(tmp_path_factory.mktemp("node"))
    server.put_tour_data()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def mart(node):
    """A fresh mart on it."""
    mart = Mart.fresh(node)
    yield mart
    mart.drop()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory):
    postgres = Postgres(tmp_path_factory.mktemp("postgres")).start()
    yield postgres
    postgres.stop()


@pytest.fixture(scope="module")
def temporal(tmp_path_factory):
    temporal = Temporal(tmp_path_factory.mktemp("temporal")).start()
    yield temporal
    temporal.stop()
