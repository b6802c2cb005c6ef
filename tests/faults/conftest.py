"""A platform of its own for faults: its processes are killed, its store runs full, its connections go dead."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.scene import Scene, running_scene
from tests.integration.privacy import scan


@pytest.fixture(scope="package")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The platform; after the last test, everything that it kept, logged and sent is searched (promise P5)."""
    with running_scene(tmp_path_factory.mktemp("faults")) as scene:
        yield scene
        print(f"{scene.arrived} accepted changes were broken in upon, and all arrived")
        assert scan(scene.platform, scene.needles(), more=scene.mail_texts()) == []
        assert scene.secrets_in_process_list() == []


@pytest.fixture
def scene(running: Scene) -> Iterator[Scene]:
    """The platform, whole again before and after each test, and with nothing under way."""
    yield running
    running.mend()
