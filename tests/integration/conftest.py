"""One running platform for all integration tests of a session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.world import World, running_world


@pytest.fixture(scope="package")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running_world(tmp_path_factory.mktemp("platform")) as running:
        yield running
