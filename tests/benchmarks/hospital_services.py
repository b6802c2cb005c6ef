"""Simulators of Twilio and REDCap for a hospital's studies, in a process of their own.

    python -m tests.benchmarks.hospital_services STUDIES SHARED FILE

Writes both addresses into FILE, then serves until SIGTERM. Each study has its token, its Messaging Service (the first
SHARED ones have one together), a number and 200 records.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

from tests.simulators.redcap import RedcapSimulator, classic_study, enrol
from tests.simulators.twilio import ACCOUNT_SID, AUTH_TOKEN, PUBLIC_URL, Account, TwilioSimulator

RECORDS = 200
LATENCY_SECONDS = 0.15


def token_of(study: int) -> str:
    return f"FAKETOKEN{study:023d}"


def service_of(study: int, shared: int) -> str:
    return f"MG{0 if study < shared else study:032x}"


def number_of(study: int) -> str:
    return f"+1650{5550000 + study}"


def main() -> None:
    studies, shared, addresses = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    redcap = RedcapSimulator({token_of(study): classic_study(f"Study {study}") for study in range(studies)})
    for study, project in enumerate(redcap.projects.values()):
        # Participants of studies with one Messaging Service are different people.
        enrol(project, RECORDS, start=1 + study * RECORDS)
    redcap.latency_seconds = LATENCY_SECONDS
    twilio = TwilioSimulator([Account(sid=ACCOUNT_SID, auth_token=AUTH_TOKEN)], public_url=PUBLIC_URL)
    for service in dict.fromkeys(service_of(study, shared) for study in range(studies)):
        twilio.add_service(
            sid=service,
            senders=[number_of(study) for study in range(studies) if service_of(study, shared) == service],
        )
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with redcap.serve() as served, twilio.serve() as rest:
        addresses.write_text(json.dumps({"redcap": served.url, "twilio": rest.url}))
        stop.wait()


if __name__ == "__main__":
    main()
