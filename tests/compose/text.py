"""In the demo's container: `python -m tests.compose.text STOP +16505550105` texts the study's number."""

import sys

import requests

from tests.compose.simulators import TWILIO_PORT
from tests.simulators.twilio import SERVICE_SID


def main() -> None:
    """Send the words from the number; print what the webhook answered."""
    words, number = sys.argv[1:]
    order = {"from": number, "body": words, "service": SERVICE_SID, "advanced_opt_out": True}
    answer = requests.post(f"http://127.0.0.1:{TWILIO_PORT}/_sim/text", json=order, timeout=30)
    print(answer.text)


if __name__ == "__main__":
    main()
