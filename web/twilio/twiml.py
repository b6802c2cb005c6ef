"""TwiML that the webhooks return. Never a reply of our own: Twilio has already answered the participant."""

from flask import Response
from twilio.twiml.messaging_response import MessagingResponse

EMPTY_RESPONSE = str(MessagingResponse())

# Not text/plain, which Twilio would send to the participant.
# Source: Twilio docs, "TwiML for Programmable Messaging".
CONTENT_TYPE = "text/xml; charset=utf-8"


def empty_response(status: int = 200, **headers: str) -> Response:
    """TwiML that asks Twilio for nothing."""
    return Response(EMPTY_RESPONSE, status, headers, content_type=CONTENT_TYPE)


def redirect(url: str) -> str:
    """TwiML that makes Twilio post the message to another address."""
    response = MessagingResponse()
    response.redirect(url, method="POST")
    return str(response)
