"""One story, interrupted at every single moment: at each effect of each step, by each kind of interruption.

What chance leaves out in `test_convergence.py` is tried here in order: every third moment in `make test`, every
one with HYPOTHESIS_PROFILE=thorough.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count

import pytest

from shared.domain.events import Change
from tests.properties.test_convergence import Convergence, Strike

KINDS = ["killed", "another task", "a delivery", "lost lock"]
STRIDE = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "thorough" else 3


def stop(history: Convergence, strike: Strike) -> None:
    """The first STOP of a study: the index is built on the way."""
    history.text_and_work(phone=1, changes=[Change.STOP], interruption=strike)


def stop_after_start(history: Convergence, strike: Strike) -> None:
    history.text_and_work(phone=2, changes=[Change.START], interruption=None)
    history.text_and_work(phone=2, changes=[Change.STOP], interruption=strike)


def start_after_stop(history: Convergence, strike: Strike) -> None:
    history.text_and_work(phone=2, changes=[Change.STOP], interruption=None)
    history.text_and_work(phone=2, changes=[Change.START], interruption=strike)


def start_while_the_answers_to_writes_are_lost(history: Convergence, strike: Strike) -> None:
    history.study.redcap.faults.add("http_500", kind="import", after_commit=True, times=3)
    history.text_and_work(phone=1, changes=[Change.STOP, Change.START], interruption=strike)


def sweep_after_a_lost_queue(history: Convergence, strike: Strike) -> None:
    history.text(phone=1, change=Change.STOP, seconds=1, by="webhook", late=False)
    history.study.published.messages.clear()
    history.sweep(minutes=1, interruption=strike)


def nightly_run_after_a_missed_webhook(history: Convergence, strike: Strike) -> None:
    history.text(phone=1, change=Change.STOP, seconds=1, by="nobody", late=False)
    history.text(phone=2, change=Change.STOP, seconds=1, by="nobody", late=False)
    history.reconcile(interruption=strike)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "story",
    [
        stop,
        stop_after_start,
        start_after_stop,
        start_while_the_answers_to_writes_are_lost,
        sweep_after_a_lost_queue,
        nightly_run_after_a_missed_webhook,
    ],
)
def test_whenever_it_is_interrupted_it_ends_well(
    story: Callable[[Convergence, Strike], None], kind: str
) -> None:
    for moment in count(KINDS.index(kind) % STRIDE, STRIDE):
        history = Convergence()
        history.begin()
        story(history, (kind, moment, 0))
        struck = history.interruption.struck
        try:
            history.teardown()
        except AssertionError as error:
            error.add_note(f"{kind} after {moment} effects")
            raise
        if not struck:
            assert moment > 5, "nothing happened: this shows nothing"
            return
