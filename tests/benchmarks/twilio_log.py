"""Simulators of Twilio and REDCap with a long message log, in a process of their own.

    python -m tests.benchmarks.twilio_log NUMBER FILE      writes both addresses into FILE, then serves until SIGTERM

As many participants as messages; one text in ten is a STOP or a START, none of which any webhook has told.
"""

from __future__ import annotations

import json
import random
import signal
import sys
import threading
from datetime import timedelta
from pathlib import Path

from tests.benchmarks.world import REDCAP_TOKEN
from tests.simulators.redcap import RedcapSimulator, classic_study, enrol, fictional_phone
from tests.simulators.twilio import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    Account,
    Message,
    TwilioSimulator,
    utc_now,
)

CHANGES = 0.1


def log_of(number: int) -> list[Message]:
    """Texts of random participants, a few seconds apart; always the same ones."""
    chance, now = random.Random(7), utc_now()
    return [
        Message(
            fictional_phone(chance.randrange(1, number + 1)),
            SENDER,
            chance.choice(["STOP", "START"]) if chance.random() < CHANGES else "thanks",
            now - timedelta(seconds=(number - place) * 7 + 60),
            messaging_service_sid=SERVICE_SID,
        )
        for place in range(number)
    ]


def main() -> None:
    number, addresses = int(sys.argv[1]), Path(sys.argv[2])
    redcap = RedcapSimulator({REDCAP_TOKEN: classic_study()})
    enrol(redcap.projects[REDCAP_TOKEN], number)
    twilio = TwilioSimulator([Account(sid=ACCOUNT_SID, auth_token=AUTH_TOKEN)], public_url=PUBLIC_URL)
    twilio.add_service(sid=SERVICE_SID, senders=[SENDER])
    twilio.add_messages(log_of(number))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with redcap.serve() as served, twilio.serve() as rest:
        addresses.write_text(json.dumps({"redcap": served.url, "twilio": rest.url}))
        stop.wait()


if __name__ == "__main__":
    main()
