"""An older program does not start with a newer ledger."""

from __future__ import annotations

import pytest

from shared.errors import ConfigError
from shared.ledger import keys
from shared.ledger.version import LEDGER_VERSION, require_ledger_version
from tests.fakes import fake_redis


@pytest.mark.parametrize("stored", [None, LEDGER_VERSION - 1, LEDGER_VERSION])
def test_an_empty_older_or_equal_ledger_gets_this_version(stored: int | None) -> None:
    redis = fake_redis()
    if stored is not None:
        redis.set(keys.LEDGER_VERSION, stored)
    require_ledger_version(redis)
    assert redis.get(keys.LEDGER_VERSION) == str(LEDGER_VERSION)


def test_a_newer_ledger_is_refused_with_the_fix_and_left_as_it_is() -> None:
    redis = fake_redis()
    redis.set(keys.LEDGER_VERSION, LEDGER_VERSION + 1)
    with pytest.raises(ConfigError) as caught:
        require_ledger_version(redis)
    assert "install that version again" in caught.value.problems[0]
    assert redis.get(keys.LEDGER_VERSION) == str(LEDGER_VERSION + 1)
