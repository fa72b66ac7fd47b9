"""Fixtures of all Python tests."""

import pytest

from served import Server


@pytest.fixture
def server(tmp_path):
    """A fresh node on the embedded store, with the tour's data in the tenant's processed bucket."""
    server = Server(tmp_path)
    server.put_tour_data()
    server.start()
    yield server
    server.stop()
