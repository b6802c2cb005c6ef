"""`block_at_twilio`: will Twilio block what it is asked to block, and has it?"""

from collections.abc import Iterator

from shared.errors import ConfigError, TwilioRejected, TwilioUnavailable
from shared.ledger.opt_outs.blocks import Blocks
from worker.checks.findings import Finding, Passed
from worker.services import Services
from worker.steps.block_at_twilio.consents import senders_of, sharing_projects
from worker.twilio.account import TwilioAccountView
from worker.twilio.consents import INVALID_SENDER, probe, why_not


def check_blocking(name: str, services: Services) -> Iterator[Finding | Passed]:
    """Ask Twilio with a consent that it cannot store, as it names no valid number. Nothing is blocked."""
    config = services.config.projects[name]
    if not config.block_at_twilio:
        return
    failed = len(Blocks(name, services.redis).failed())
    if failed:
        yield Finding(id="blocks-failed", subject=name, observed=f"{failed} opt-outs")
    if others := sharing_projects(name, services.config):
        yield Finding(id="block-concerns-others", subject=name, observed=f"shared with {', '.join(others)}")
    try:
        yield from _senders(name, services)
    except TwilioUnavailable as error:
        yield Finding(id="twilio-unreachable", subject=name, observed=str(error))
    except TwilioRejected as error:
        yield Finding(id="block-not-enabled", subject=name, observed=why_not(error))
    except ConfigError:
        return  # reported as secret-missing


def _senders(name: str, services: Services) -> Iterator[Finding | Passed]:
    senders = list(senders_of(services.config.projects[name], services).values())
    if not senders:
        yield Finding(
            id="block-covers-nothing", subject=name, observed="no Messaging Service, number or short code"
        )
        return
    client = services.twilio(name)
    account = TwilioAccountView(client, services.config.public_url)
    for sender in senders:
        known = sender if sender.startswith("MG") else f"the number …{sender[-4:]}"
        if INVALID_SENDER in probe(client, sender):
            yield Finding(id="block-sender-refused", subject=name, observed=known)
        elif service := _service_of(sender, account):
            yield Finding(id="block-wrong-scope", subject=name, observed=f"{known} is in {service}")
        else:
            yield Passed(name, f"Twilio accepts requests to block for {known}")


def _service_of(sender: str, account: TwilioAccountView) -> str:
    """The Messaging Service that a number belongs to, or ""."""
    number = account.number(sender) if sender.startswith("+") else None
    return account.service_of(number) if number else ""
