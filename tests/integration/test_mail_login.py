"""Mail servers that demand a login, with the real processes: OAuth 2.0 tokens, and a password that is rejected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from shared.ledger import keys
from tests.integration.world import (
    HASH_KEY,
    SENDER_ADDRESS,
    STUDIES,
    Participant,
    World,
    configuration,
    sender_of,
    service_sid,
)
from tests.processes import Platform, wait_until
from tests.simulators.oauth2 import TokenEndpoint
from tests.simulators.redcap import RedcapSimulator
from tests.simulators.smtp import SmtpSimulator
from tests.simulators.twilio import AUTH_TOKEN, Account, TwilioSimulator


@contextmanager
def platform(folder: Path, smtp: SmtpSimulator, *, more: str = "", **secrets: str) -> Iterator[World]:
    """The processes without beat and Flower, with this mail server."""
    redcap = RedcapSimulator({token: make() for token, _, make, _ in STUDIES.values()})
    with ExitStack() as stack:
        stack.enter_context(redcap.serve())
        stack.enter_context(smtp.serve())
        known = {f"{name.upper()}_TOKEN": token for name, (token, *_) in STUDIES.items()} | {
            "TWILIO_AUTH_TOKEN": AUTH_TOKEN,
            "OPTOUT_HASH_KEY": HASH_KEY,
            "OPTOUT_SMTP_URL": smtp.url.replace(":@", "@"),
        }
        running = Platform(folder, configuration(redcap.url) + more, known | secrets, level="DEBUG")
        stack.enter_context(running)
        running.start("redis", "web", "worker")
        twilio = TwilioSimulator([Account()], deliver_to=running.web_url)
        twilio.add_service(sid=service_sid("1"), senders=[sender_of("1")])
        yield World(running, redcap, smtp, twilio)


def stops(world: World, number: int) -> list[Participant]:
    people = [world.enrol() for _ in range(number)]
    for person in people:
        world.text(person.phone)
    wait_until(lambda: all(world.value(person) for person in people), what="all is in REDCap")
    return people


def stored(world: World) -> str:
    """The hashes and strings in Redis."""
    redis: Any = world.platform.redis
    hashes = [redis.hgetall(key) for key in redis.scan_iter(_type="hash")]
    return str([*hashes, *((key, redis.get(key)) for key in redis.scan_iter(_type="string"))])


def test_mails_are_sent_with_tokens_that_are_renewed_and_shown_nowhere(tmp_path: Path) -> None:
    tokens = TokenEndpoint()
    smtp = SmtpSimulator(user=SENDER_ADDRESS, token_is_valid=lambda token: token in tokens.issued)
    with tokens.serve():
        more = (
            f'\n[smtp.oauth2]\ntoken_url = "{tokens.url}"\nclient_id = "{tokens.client_id}"\n'
            f'client_secret = "env:CLIENT_SECRET"\nscope = "{tokens.scope}"\n'
        )
        with platform(tmp_path, smtp, more=more, CLIENT_SECRET=tokens.client_secret) as world:
            stops(world, 12)
            smtp.wait_for(12, seconds=30)
            processes = len(tokens.requests)
            assert 1 <= processes <= 4
            tokens.issued.clear()
            stops(world, 12)
            smtp.wait_for(24, seconds=30)
            assert len(tokens.requests) <= 2 * processes + 4
            subjects = [mail.subject for mail in smtp.inbox]
            assert len(set(subjects)) == len(subjects) == 24
            shown = world.platform.logs() + stored(world)
            assert [secret for secret in ("token-", tokens.client_secret, "Bearer") if secret in shown] == []


@pytest.mark.parametrize("reply", ["535 5.7.8 Invalid credentials", "550 5.7.30 Basic authentication"])
def test_a_rejected_password_is_tried_once_and_no_mail_is_lost(tmp_path: Path, reply: str) -> None:
    smtp = SmtpSimulator(user=SENDER_ADDRESS, password="right")
    smtp.reply("AUTH", reply, times=None)
    with platform(tmp_path, smtp) as world:
        stops(world, 12)
        wait_until(
            lambda: world.platform["worker"].text().count("smtp_login_paused") >= 11, what="mails wait"
        )
        result = world.platform.run("check", "--json", check=False)
        assert "smtp-login-rejected" in result.stdout
        assert smtp.logins == 1
        smtp.mend()
        for key in world.platform.redis.scan_iter(keys.mail_login("*")):
            world.platform.redis.delete(key)  # instead of waiting for a minute
        assert "mail" in world.platform.run("replay", "--mails").stdout  # some may have been sent by then
        mails = smtp.wait_for(12, seconds=30)
        assert len({mail.subject for mail in mails}) == 12
        wait_until(lambda: world.platform.redis.zcard(keys.mailing("asthma")) == 0, what="no mail is due")
        assert len(smtp.inbox) == 12
