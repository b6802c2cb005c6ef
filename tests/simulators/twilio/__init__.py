"""A stand-in for Twilio: participants who text, signed webhooks, Event Streams, and the REST API.

It knows nothing of the program under test, and nothing here reaches the internet: a public URL is
delivered to whatever address its route names. What it does follows Twilio's public documentation and
API description (github.com/twilio/twilio-oai); where those are silent a comment says what was chosen.

    sim = TwilioSimulator(public_url="https://optout.example.edu", deliver_to="http://127.0.0.1:8000")
    with sim.serve() as server:          # the REST API, at server.url
        texted = sim.text(from_="+16505550100", body="STOP")
        texted.status, texted.body       # what the webhook answered

Run alone: python -m tests.simulators.twilio --port 9001 --deliver-to http://127.0.0.1:8000
"""

from tests.simulators.twilio.accounts import (
    ACCOUNT_SID,
    AUTH_TOKEN,
    SENDER,
    SERVICE_SID,
    Account,
    Sender,
    SenderKind,
    Service,
    new_sid,
)
from tests.simulators.twilio.delivery import (
    Exchange,
    Hook,
    Network,
    Overrides,
    Texted,
    Twiml,
    parse_overrides,
    read_twiml,
)
from tests.simulators.twilio.events import (
    EVENT_TYPES,
    INBOUND_EVENT,
    TEST_EVENT,
    Sink,
    Subscription,
    cloud_event,
    event_stream_body,
    inbound_event,
)
from tests.simulators.twilio.faults import Fault, FaultKind, LoggedRequest
from tests.simulators.twilio.holdings import EVENTS_PATH, INBOUND_PATH, PUBLIC_URL, RETRY_FRAGMENT
from tests.simulators.twilio.messages import Message, MessageLog, inbound_parameters, utc_now
from tests.simulators.twilio.opt_outs import UNSUBSCRIBED, MessageRefused, keyword_of
from tests.simulators.twilio.rest_consents import Consent
from tests.simulators.twilio.server import RunningServer
from tests.simulators.twilio.signing import (
    SignedRequest,
    form_request,
    json_request,
    sign_form,
    sign_json,
    signed_url,
)
from tests.simulators.twilio.simulator import TwilioSimulator, Via

__all__ = [
    "ACCOUNT_SID",
    "AUTH_TOKEN",
    "EVENTS_PATH",
    "EVENT_TYPES",
    "INBOUND_EVENT",
    "INBOUND_PATH",
    "PUBLIC_URL",
    "RETRY_FRAGMENT",
    "SENDER",
    "SERVICE_SID",
    "TEST_EVENT",
    "UNSUBSCRIBED",
    "Account",
    "Consent",
    "Exchange",
    "Fault",
    "FaultKind",
    "Hook",
    "LoggedRequest",
    "Message",
    "MessageLog",
    "MessageRefused",
    "Network",
    "Overrides",
    "RunningServer",
    "Sender",
    "SenderKind",
    "Service",
    "SignedRequest",
    "Sink",
    "Subscription",
    "Texted",
    "TwilioSimulator",
    "Twiml",
    "Via",
    "cloud_event",
    "event_stream_body",
    "form_request",
    "inbound_event",
    "inbound_parameters",
    "json_request",
    "keyword_of",
    "new_sid",
    "parse_overrides",
    "read_twiml",
    "sign_form",
    "sign_json",
    "signed_url",
    "utc_now",
]
