"""Addresses with display names, as people write them, as headers have them, and in the configuration."""

from __future__ import annotations

import email
import json
from email import policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import parse_config
from shared.config.secrets import Secret
from shared.domain.mailbox import Mailbox, set_addresses, without_repeated
from shared.errors import ConfigError
from tests.builders import config, document, project_table

ADDRESS = "name@example.edu"
NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp", "Zs"]) | st.just(" "), max_size=150
).map(lambda text: " ".join(text.split()))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (ADDRESS, ""),
        (f"  {ADDRESS} ", ""),
        (f"<{ADDRESS}>", ""),
        (f"Asthma study <{ADDRESS}>", "Asthma study"),
        (f"Asthma study<{ADDRESS}>", "Asthma study"),
        (f"Dr. J. O'Neill (adults) <{ADDRESS}>", "Dr. J. O'Neill (adults)"),
        (f'"Asthma, adults" <{ADDRESS}>', "Asthma, adults"),
        (f'"The \\"asthma\\" \\\\ study" <{ADDRESS}>', 'The "asthma" \\ study'),
        (f"Дослідження астми <{ADDRESS}>", "Дослідження астми"),
    ],
)
def test_an_address_with_a_name_is_read(text: str, name: str) -> None:
    mailbox = Mailbox.parse(text)
    assert (mailbox, mailbox.name) == (ADDRESS, name)


INVALID = [
    "",
    "coordinator",
    "Asthma study",
    f"Asthma study {ADDRESS}",
    "Asthma study <coordinator>",
    "Asthma study <>",
    f"Asthma study <{ADDRESS}",
    f"Asthma study {ADDRESS}>",
    f"Asthma, adults <{ADDRESS}>",
    f"A <{ADDRESS}>, B <b@example.edu>",
    f"{ADDRESS}, b@example.edu",
    f'"Asthma <{ADDRESS}>',
    f"Asthma\nBcc: b@example.edu <{ADDRESS}>",
    f"Asthma <{ADDRESS}\nBcc: b@example.edu>",
    "a..b@example.edu",
    "a@b@example.edu",
]


@pytest.mark.parametrize("text", INVALID)
def test_what_is_not_one_address_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match=r"address|quotation marks"):
        Mailbox.parse(text)


@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_header_names_the_same_people_in_short_lines(names: list[str]) -> None:
    message = EmailMessage()
    sent = [Mailbox(f"a{number}@example.edu", name) for number, name in enumerate(names)]
    set_addresses(message, "To", sent)
    content = message.as_bytes()
    assert content.isascii()
    assert max(map(len, content.splitlines())) <= 78
    received = email.message_from_bytes(content, policy=policy.default)["To"].addresses
    assert [each.addr_spec for each in received] == [str(each) for each in sent]
    old = email.message_from_bytes(content, policy=policy.compat32)["To"]
    shown = str(make_header(decode_header(old))).replace("\n", "")
    assert [name for name in names if name.isalnum() and name not in shown] == []


@given(NAMES)
def test_what_is_written_is_read_again(name: str) -> None:
    mailbox = Mailbox(ADDRESS, name)
    again = Mailbox.parse(mailbox.written)
    assert (again, again.name) == (mailbox, name)


def test_an_address_counts_once_whatever_its_name() -> None:
    twice = [Mailbox("A@example.edu", "first"), Mailbox("b@example.edu"), Mailbox("a@Example.edu", "second")]
    assert [(each, each.name) for each in without_repeated(twice)] == [
        ("A@example.edu", "first"),
        ("b@example.edu", ""),
    ]


NAMED = f"Asthma study <{ADDRESS}>"


def test_every_key_with_addresses_takes_names() -> None:
    loaded = config(
        {"asthma": project_table(notify=[NAMED, ADDRESS.upper()], reply_to=NAMED)},
        smtp={"sender": NAMED}, operator={"notify": [NAMED, ADDRESS]},
    )  # fmt: skip
    project = loaded.projects["asthma"]
    assert loaded.smtp
    assert project.reply_to
    found = [*project.notify, project.reply_to, loaded.smtp.sender, *loaded.operator.notify]
    assert [(each, each.name) for each in found] == [(ADDRESS, "Asthma study")] * 4


def test_a_changed_name_is_another_configuration_and_is_kept() -> None:
    plain, named = (config({"asthma": project_table(notify=[text])}) for text in (ADDRESS, NAMED))
    assert plain.digest != named.digest
    stored = json.dumps(
        named.model_dump(exclude={"include"}),
        default=lambda value: value.reference if isinstance(value, Secret) else None,
    )
    assert parse_config(json.loads(stored)).digest == named.digest


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"smtp": {"sender": "Asthma, adults <a@example.edu>"}}, "smtp.sender"),
        ({"operator": {"notify": ["Asthma, adults <a@example.edu>"]}}, "operator.notify"),
        (
            {"projects": {"asthma": project_table(notify=["Asthma, adults <a@example.edu>"])}},
            "projects.asthma.notify",
        ),
        (
            {"projects": {"asthma": project_table(reply_to="Asthma, adults <a@example.edu>")}},
            "projects.asthma.reply_to",
        ),
    ],
)
def test_an_invalid_one_names_key_value_and_fix(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**document(), **changes})
    [problem] = caught.value.problems
    assert problem.startswith(f"{key}: does not have the right form.")
    assert 'Write "name@example.edu" or "Asthma study <name@example.edu>"' in problem
    assert problem.endswith('(now: "Asthma, adults <a@example.edu>")')


@pytest.mark.parametrize(
    "value", ["smtp://user:geheim@mail.example.edu", "+16505550123", "geheim" * 8, 5, None]
)
def test_what_may_be_a_secret_is_not_repeated(value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config({**document(), "operator": {"notify": [value]}})
    assert "geheim" not in str(caught.value)
    assert "6505550123" not in str(caught.value)
