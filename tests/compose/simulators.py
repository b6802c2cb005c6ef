"""The demo's studies and simulators of REDCap, Twilio and mail in a container; tests of a deployment run it alone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.demo import ASTHMA_TOKEN, SLEEP_TOKEN, the_account, the_phone, the_studies
from tests.simulators.redcap import Project, RedcapSimulator
from tests.simulators.redcap.__main__ import ASTHMA_TOKEN as OWN_ASTHMA_TOKEN
from tests.simulators.redcap.__main__ import SLEEP_TOKEN as OWN_SLEEP_TOKEN
from tests.simulators.smtp import SmtpSimulator, serve_inbox
from tests.simulators.twilio import ACCOUNT_SID, TwilioSimulator
from tests.simulators.twilio import AUTH_TOKEN as OWN_AUTH_TOKEN

ANYWHERE = "0.0.0.0"
REDCAP_PORT, TWILIO_PORT, SMTP_PORT, MAIL_PORT = 8900, 9001, 9025, 9026
_stopped = threading.Event()


def wait_for_sigterm() -> None:
    """Until the container is stopped."""
    _stopped.wait()


@contextmanager
def serving() -> Iterator[tuple[Project, Project, TwilioSimulator, SmtpSimulator]]:
    """All simulators, serving on their ports: the two studies, Twilio and the mail server."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: _stopped.set())
    (asthma, sleep), twilio, smtp = the_studies(), the_account(), SmtpSimulator()
    # No deployment starts with the demo's secrets: tests of one have secrets of their own.
    twilio.accounts[ACCOUNT_SID].secondary_auth_token = OWN_AUTH_TOKEN
    own = {OWN_ASTHMA_TOKEN: asthma, OWN_SLEEP_TOKEN: sleep}
    redcap = RedcapSimulator({ASTHMA_TOKEN: asthma, SLEEP_TOKEN: sleep} | own)
    with (
        redcap.serve(REDCAP_PORT, ANYWHERE),
        twilio.serve(TWILIO_PORT, ANYWHERE),
        smtp.serve(SMTP_PORT, ANYWHERE),
        serve_inbox(smtp, MAIL_PORT, ANYWHERE, the_phone(twilio)),
    ):
        yield asthma, sleep, twilio, smtp


if __name__ == "__main__":
    with serving() as (_asthma, _sleep, twilio, _smtp):
        twilio.accounts[ACCOUNT_SID].promote_secondary_token()  # only the primary one signs
        twilio.deliver_to("http://web:8000")
        wait_for_sigterm()
