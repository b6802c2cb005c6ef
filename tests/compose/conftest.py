"""`make test-compose`: these tests need a container engine, so that `make test` leaves them out."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.stack import Stack

ASKED_FOR = "OPTOUT_COMPOSE_TESTS" in os.environ
collect_ignore_glob = [] if ASKED_FOR else ["test_*.py"]


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The demo's containers, built and healthy, under a project name of their own; removed at the end."""
    stack = Stack(tmp_path_factory.mktemp("compose"))
    try:
        stack.up()
        yield stack
    finally:
        stack.remove()
