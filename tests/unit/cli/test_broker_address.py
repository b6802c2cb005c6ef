"""A broker's address that cannot be used is reported before a command changes anything."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from worker.cli.common import make_services


def test_an_unusable_broker_is_reported_before_the_configuration_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPTOUT_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("OPTOUT_BROKER_URL", "carrier-pigeon://127.0.0.1:1")
    with pytest.raises(ConfigError) as raised:
        make_services()
    assert raised.value.source == "OPTOUT_BROKER_URL"
