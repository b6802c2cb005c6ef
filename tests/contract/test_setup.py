"""`optout setup` against the Twilio simulator: plan, consent, idempotence, and undo."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shared.config import parse_config
from shared.ledger import keys
from shared.ledger.platform.service_senders import ServiceSenders
from tests import builders
from tests.fakes import RecordingPublisher, fake_redis
from tests.simulators.twilio import (
    AUTH_TOKEN,
    INBOUND_EVENT,
    PUBLIC_URL,
    SENDER,
    SERVICE_SID,
    TwilioSimulator,
    new_sid,
    parse_overrides,
)
from worker.services import Services
from worker.twilio.account import TwilioAccountView, without_login
from worker.twilio.client import working_client
from worker.twilio.setup.plan import plan_undo

# By its path: in worker.cli the name stands for the command.
command = importlib.import_module("worker.cli.setup")
OURS = f"{PUBLIC_URL}/twilio/inbound#rc=5&rp=5xx,ct,rt&ct=1500&rt=3000"
SURVEY = "https://redcap.example.edu/surveys/?s=EXAMPLE"
WITH_LOGIN = "https://redcap:hunter%22two@redcap.example.edu/surveys/?s=EXAMPLE"
OWN_NUMBER = "+16505550177"
NUMBER_DIGITS = "5550177"


@dataclass
class Desk:
    """A terminal in front of a Twilio account."""

    monkeypatch: pytest.MonkeyPatch
    twilio: TwilioSimulator
    redis: Any = field(default_factory=fake_redis)
    projects: dict[str, dict[str, Any]] = field(default_factory=dict)
    public_url: str = PUBLIC_URL

    def __post_init__(self) -> None:
        self.projects = {"asthma": builders.project_table()}
        self.monkeypatch.setattr(command, "make_services", self.services)

    @property
    def service(self) -> Any:
        return self.twilio.services[SERVICE_SID]

    @property
    def number(self) -> Any:
        return self.twilio.sender_at(OWN_NUMBER)

    def services(self) -> Services:
        config = parse_config(builders.document(self.projects, public_url=self.public_url))
        return Services(config=config, redis=self.redis, publish=RecordingPublisher())

    @property
    def saved(self) -> set[str]:
        """The keys of what optout setup has saved about the account."""
        return set(self.redis.hgetall(keys.twilio_setup(self.twilio.first_account.sid)))

    def setup(self, *arguments: str, answer: str | None = None) -> Result:
        arguments = arguments if answer is not None else ("--yes", *arguments)
        result = CliRunner().invoke(command.setup, list(arguments), input=answer)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def with_number_alone(self, **hooks: Any) -> None:
        """The project names a number that is in no service."""
        self.twilio.add_sender(OWN_NUMBER, **hooks)
        self.projects["asthma"] = builders.project_table(messaging_service_sid=None, senders=[OWN_NUMBER])

    def writes(self) -> list[str]:
        return [
            f"{entry.method} {entry.resource}" for entry in self.twilio.request_log if entry.method != "GET"
        ]

    def state(self) -> Any:
        """Everything at Twilio that setup could change."""
        return deepcopy(
            (self.twilio.services, self.twilio.senders, self.twilio.sinks, self.twilio.subscriptions)
        )


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    twilio = TwilioSimulator()
    service = twilio.services[SERVICE_SID]
    service.inbound_request_url, service.use_inbound_webhook_on_number = None, True
    with twilio.serve() as server:
        for name, value in builders.SECRETS.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("OPTOUT_TWILIO_API_URL", server.url)
        yield Desk(monkeypatch, twilio)


class TestConsent:
    def test_the_plan_is_shown_and_nothing_is_done_without_consent(self, desk: Desk) -> None:
        before = desk.state()
        result = desk.setup(answer="n\n")
        assert f"have {SERVICE_SID} call {OURS}" in result.stdout
        assert result.exit_code == 1
        assert desk.state() == before
        assert desk.writes() == []

    def test_consent_at_the_prompt_applies_the_plan(self, desk: Desk) -> None:
        assert desk.setup(answer="y\n").exit_code == 0
        assert desk.service.inbound_request_url == OURS

    def test_an_unknown_project_is_named(self, desk: Desk) -> None:
        result = desk.setup("--project", "nobody")
        assert result.exit_code == 2
        assert "configured are: asthma" in result.stderr


class TestBlocking:
    def test_how_to_have_the_api_enabled_is_explained_to_who_wants_to_block(self, desk: Desk) -> None:
        assert "Consent Management API" not in desk.setup().stdout
        desk.projects["asthma"] = builders.project_table(block_at_twilio=True)
        assert "ask Twilio's support to enable it" in " ".join(desk.setup().stdout.split())


class TestWebhookMode:
    def test_a_new_service_calls_this_program_with_retries_and_a_fallback(self, desk: Desk) -> None:
        desk.setup()
        service = desk.service
        assert (service.inbound_request_url, service.fallback_url) == (OURS, OURS)
        assert (service.inbound_method, service.fallback_method) == ("POST", "POST")
        assert service.use_inbound_webhook_on_number is False
        assert parse_overrides(service.inbound_request_url).rc == 5

    def test_a_text_then_comes_to_this_program(self, desk: Desk) -> None:
        desk.setup()
        message, _ = desk.twilio.inbound(from_="+16505550100")
        hook = desk.twilio.hook_for(message)
        assert hook is not None
        assert hook.url == OURS

    def test_a_second_run_changes_nothing(self, desk: Desk) -> None:
        desk.setup()
        before, writes = desk.state(), len(desk.writes())
        result = desk.setup()
        assert "nothing to do" in result.stdout
        assert desk.state() == before
        assert len(desk.writes()) == writes

    def before_setup(self, desk: Desk, place: str) -> None:
        """REDCap's address is called: by the service, or by a number inside or outside of it."""
        if place == "service":
            desk.service.inbound_request_url, desk.service.use_inbound_webhook_on_number = SURVEY, False
        elif place == "number":
            desk.twilio.sender_at(SENDER).sms_url = SURVEY
        else:
            desk.with_number_alone(sms_url=SURVEY)
            desk.projects["asthma"]["keyword_fallback"] = True

    def fallback(self, desk: Desk, place: str) -> Any:
        return desk.number.sms_fallback_url if place == "number_alone" else desk.service.fallback_url

    @pytest.mark.parametrize("place", ["service", "number", "number_alone"])
    @pytest.mark.parametrize("saved", [True, False])
    @pytest.mark.parametrize("mode", [("--mode", "webhook"), ()])
    def test_before_forward_url_is_written_a_second_run_prints_it_again(
        self, desk: Desk, place: str, saved: bool, mode: tuple[str, ...]
    ) -> None:
        self.before_setup(desk, place)
        desk.setup("--mode", "webhook")
        if not saved:
            desk.redis.flushall()
        before, writes = desk.state(), len(desk.writes())
        for _ in range(2):
            result = desk.setup(*mode)
            assert "nothing to do" in result.stdout
            assert f'forward_url = "{SURVEY}"' in result.stdout
        assert (desk.state(), len(desk.writes())) == (before, writes)
        assert self.fallback(desk, place) == SURVEY
        desk.projects["asthma"]["forward_url"] = SURVEY
        result = desk.setup(*mode)
        assert "nothing to do" in result.stdout
        assert "forward_url =" not in result.stdout

    def test_a_fallback_of_another_program_is_never_replaced(self, desk: Desk) -> None:
        desk.setup()
        desk.service.fallback_url = "https://errors.example.edu/"
        assert "nothing to do" in desk.setup().stdout
        assert desk.service.fallback_url == "https://errors.example.edu/"

    def test_redcaps_address_becomes_forward_url_and_fallback(self, desk: Desk) -> None:
        desk.twilio.sender_at(SENDER).sms_url = SURVEY
        result = desk.setup("--mode", "webhook")
        assert f'forward_url = "{SURVEY}"' in result.stdout
        assert desk.service.fallback_url == SURVEY
        assert desk.twilio.sender_at(SENDER).sms_url == SURVEY

    def test_a_configured_forward_url_is_the_fallback(self, desk: Desk) -> None:
        desk.projects["asthma"]["forward_url"] = SURVEY
        result = desk.setup()
        assert desk.service.fallback_url == SURVEY
        assert "forward_url =" not in result.stdout

    def test_two_different_addresses_are_for_a_person_to_decide(self, desk: Desk) -> None:
        desk.twilio.sender_at(SENDER).sms_url = SURVEY
        desk.twilio.add_sender(OWN_NUMBER, service=desk.service, sms_url="https://other.example.edu/")
        before = desk.state()
        result = desk.setup("--mode", "webhook")
        assert result.exit_code == 1
        assert "one only" in result.stdout
        assert desk.state() == before

    def test_the_studys_own_retry_settings_are_kept(self, desk: Desk) -> None:
        desk.setup()
        desk.service.inbound_request_url = f"{PUBLIC_URL}/twilio/inbound#rc=2&rp=5xx&tt=9000"
        assert "nothing to do" in desk.setup().stdout

    def test_advanced_opt_out_is_explained_when_it_matters(self, desk: Desk) -> None:
        assert "Opt-Out Management" in desk.setup().stdout
        desk.projects["asthma"]["keyword_fallback"] = True
        assert "Opt-Out Management" not in desk.setup().stdout

    def test_the_campaign_is_explained_until_it_is_verified(self, desk: Desk) -> None:
        assert "A2P 10DLC" in desk.setup().stdout
        desk.twilio.add_campaign(SERVICE_SID)
        desk.service.inbound_request_url = None
        assert "A2P 10DLC" not in desk.setup().stdout

    def test_a_campaign_that_twilio_does_not_show_blocks_nothing(self, desk: Desk) -> None:
        desk.twilio.fail("404", resource="Services/Usa2p", times=None)
        result = desk.setup()
        assert (result.exit_code, desk.service.inbound_request_url) == (0, OURS)
        assert "A2P 10DLC" in result.stdout

    def test_a_number_that_stays_outside_a_service_gets_the_address_itself(self, desk: Desk) -> None:
        desk.with_number_alone(sms_url=SURVEY)
        desk.projects["asthma"]["keyword_fallback"] = True
        result = desk.setup("--mode", "webhook")
        assert (desk.number.sms_url, desk.number.sms_fallback_url) == (OURS, SURVEY)
        assert f'forward_url = "{SURVEY}"' in result.stdout
        assert desk.number.service_sid is None

    def test_a_number_with_an_application_is_for_a_person_to_decide(self, desk: Desk) -> None:
        desk.with_number_alone(sms_application_sid=new_sid("AP"))
        desk.projects["asthma"]["keyword_fallback"] = True
        assert "TwiML application" in desk.setup("--mode", "webhook").stdout


class TestSenders:
    """The worker lists a service's senders, so that web can route messages without its SID."""

    def services_of(self, desk: Desk, address: str, sid: str = SERVICE_SID) -> list[str]:
        return ServiceSenders(desk.redis, builders.hashed).services_of(address, [sid])

    @pytest.mark.parametrize("mode", ["webhook", "events"])
    def test_setup_lists_the_numbers_of_the_service(self, desk: Desk, mode: str) -> None:
        desk.setup("--mode", mode)
        assert self.services_of(desk, SENDER) == [SERVICE_SID]
        assert self.services_of(desk, OWN_NUMBER) == []

    def test_a_number_that_setup_attaches_is_listed(self, desk: Desk) -> None:
        desk.twilio.add_sender(OWN_NUMBER)
        desk.projects["asthma"]["senders"] = [OWN_NUMBER]
        desk.setup()
        assert self.services_of(desk, OWN_NUMBER) == [SERVICE_SID]

    def test_the_numbers_of_a_created_service_are_listed(self, desk: Desk) -> None:
        desk.with_number_alone()
        desk.setup()
        made = str(desk.number.service_sid)
        assert self.services_of(desk, OWN_NUMBER, made) == [made]


class TestEventsMode:
    def test_a_sink_is_subscribed_and_no_address_is_changed(self, desk: Desk) -> None:
        services, senders, *_ = desk.state()
        desk.setup("--mode", "events")
        assert desk.twilio.event_urls(desk.twilio.first_account.sid) == [f"{PUBLIC_URL}/twilio/events"]
        (subscription,) = desk.twilio.subscriptions.values()
        assert subscription.types == {INBOUND_EVENT: 6}
        assert (desk.twilio.services, desk.twilio.senders) == (services, senders)

    def test_a_second_run_changes_nothing(self, desk: Desk) -> None:
        desk.setup("--mode", "events")
        before = desk.state()
        assert "nothing to do" in desk.setup("--mode", "events").stdout
        assert desk.state() == before

    def test_a_sink_without_subscription_gets_one(self, desk: Desk) -> None:
        sink = desk.twilio.add_sink()
        desk.twilio.subscriptions.clear()
        desk.setup("--mode", "events")
        (subscription,) = desk.twilio.subscriptions.values()
        assert subscription.sink_sid == sink.sid
        assert len(desk.twilio.sinks) == 1

    def test_a_sink_whose_configuration_is_json_text_is_recognised(self, desk: Desk) -> None:
        sink = desk.twilio.add_sink()
        sink.configuration = json.dumps(sink.configuration)  # type: ignore[assignment]
        assert "nothing to do" in desk.setup("--mode", "events").stdout

    def test_a_sink_without_a_destination_is_ignored(self, desk: Desk) -> None:
        desk.twilio.add_sink().configuration = {}
        assert desk.setup("--mode", "events").exit_code == 0
        assert len(desk.twilio.sinks) == 2

    def test_a_sink_that_failed_is_replaced(self, desk: Desk) -> None:
        failed = desk.twilio.add_sink(status="failed")
        desk.setup("--mode", "events")
        assert list(desk.twilio.sinks) != [failed.sid]
        assert len(desk.twilio.sinks) == len(desk.twilio.subscriptions) == 1

    def test_a_service_that_drops_messages_defers_from_now_on(self, desk: Desk) -> None:
        desk.service.use_inbound_webhook_on_number = False
        desk.setup("--mode", "events")
        assert desk.service.use_inbound_webhook_on_number is True

    def test_it_is_chosen_if_another_program_handles_the_messages(self, desk: Desk) -> None:
        desk.twilio.sender_at(SENDER).sms_url = SURVEY
        assert "mode events: the number has an address of its own" in desk.setup().stdout
        assert desk.twilio.sender_at(SENDER).sms_url == SURVEY


class TestTheMessagingService:
    def test_one_is_created_for_a_number_and_its_sid_printed(self, desk: Desk) -> None:
        desk.with_number_alone()
        result = desk.setup()
        service = desk.twilio.services[desk.number.service_sid]
        assert f'messaging_service_sid = "{service.sid}"' in result.stdout
        assert service.inbound_request_url == OURS

    def test_before_the_configuration_is_edited_a_second_run_finds_it(self, desk: Desk) -> None:
        desk.with_number_alone()
        desk.setup()
        before = desk.state()
        result = desk.setup()
        assert "nothing to do" in result.stdout
        assert "messaging_service_sid =" in result.stdout
        assert desk.state() == before

    def test_one_that_was_created_before_a_crash_is_used(self, desk: Desk) -> None:
        desk.with_number_alone()
        desk.setup()
        made = desk.number.service_sid
        desk.number.service_sid = None
        desk.setup()
        assert desk.number.service_sid == made

    def test_a_configured_one_that_does_not_exist_is_not_replaced(self, desk: Desk) -> None:
        desk.projects["asthma"]["messaging_service_sid"] = new_sid("MG")
        result = desk.setup()
        assert result.exit_code == 1
        assert "correct messaging_service_sid" in result.stdout
        assert desk.writes() == []

    def test_a_configured_number_is_attached(self, desk: Desk) -> None:
        desk.twilio.add_sender(OWN_NUMBER)
        desk.projects["asthma"]["senders"] = [OWN_NUMBER]
        desk.setup()
        assert desk.number.service_sid == SERVICE_SID

    def test_a_number_of_another_service_is_not_moved(self, desk: Desk) -> None:
        desk.twilio.add_service(senders=[OWN_NUMBER])
        desk.projects["asthma"]["senders"] = [OWN_NUMBER]
        result = desk.setup()
        assert result.exit_code == 1
        assert "is in another Messaging Service" in result.stdout

    def test_a_number_that_the_account_lacks_is_named_by_its_end_only(self, desk: Desk) -> None:
        desk.projects["asthma"]["senders"] = [OWN_NUMBER]
        result = desk.setup()
        assert "…0177" in result.stdout
        assert NUMBER_DIGITS not in result.stdout


class TestUndo:
    @pytest.mark.parametrize("mode", ["webhook", "events"])
    @pytest.mark.parametrize("url", ["", SURVEY])
    def test_everything_is_restored(self, desk: Desk, mode: str, url: str) -> None:
        desk.twilio.sender_at(SENDER).sms_url = url
        before = desk.state()
        desk.setup("--mode", mode)
        assert desk.state() != before
        desk.setup("--undo")
        assert desk.state() == before

    def test_another_address_of_the_service_is_restored(self, desk: Desk) -> None:
        desk.service.inbound_request_url, desk.service.use_inbound_webhook_on_number = SURVEY, False
        before = desk.state()
        desk.setup("--mode", "webhook")
        desk.setup("--mode", "webhook")  # a second run must not save this program's settings as the original
        desk.setup("--undo")
        assert desk.state() == before

    def test_the_address_of_a_number_outside_a_service_is_restored(self, desk: Desk) -> None:
        desk.with_number_alone(sms_url=SURVEY, sms_method="GET")
        desk.projects["asthma"]["keyword_fallback"] = True
        before = desk.state()
        desk.setup("--mode", "webhook")
        desk.setup("--undo")
        assert desk.state() == before

    def test_a_created_service_is_kept_without_senders_for_a_person_to_delete(self, desk: Desk) -> None:
        desk.with_number_alone(sms_url=SURVEY)
        desk.setup("--mode", "webhook")
        made = desk.number.service_sid
        result = desk.setup("--undo")
        assert desk.number.service_sid is None
        assert desk.number.sms_url == SURVEY
        assert f"{made} was created by optout setup" in result.stdout

    def test_what_a_person_has_changed_since_is_kept(self, desk: Desk) -> None:
        desk.setup()
        desk.service.inbound_request_url = "https://new.example.edu/"
        result = desk.setup("--undo")
        assert "its address has been changed since" in result.stdout
        assert desk.service.inbound_request_url == "https://new.example.edu/"

    def test_what_another_project_uses_stays(self, desk: Desk) -> None:
        desk.projects["sleep"] = builders.project_table()
        desk.setup()
        result = desk.setup("--undo", "--project", "asthma")
        assert "another project uses it" in result.stdout
        assert desk.service.inbound_request_url == OURS
        desk.setup("--undo")
        assert desk.service.inbound_request_url is None

    def test_the_sink_stays_while_other_projects_of_the_account_remain(self, desk: Desk) -> None:
        desk.projects["sleep"] = builders.project_table()
        desk.setup("--mode", "events")
        desk.setup("--undo", "--project", "asthma")
        assert len(desk.twilio.sinks) == len(desk.twilio.subscriptions) == 1

    def test_a_second_undo_has_nothing_to_do(self, desk: Desk) -> None:
        desk.setup("--mode", "events")
        desk.setup("--undo")
        assert "nothing to do" in desk.setup("--undo").stdout

    @pytest.mark.parametrize("mode", ["webhook", "events"])
    def test_planning_deletes_no_saved_settings(self, desk: Desk, mode: str) -> None:
        desk.with_number_alone()
        desk.setup("--mode", mode)
        before = desk.saved
        for held in (desk.twilio.services, desk.twilio.sinks, desk.twilio.subscriptions):
            held.clear()
        assert desk.setup("--undo", answer="n\n").exit_code == 1
        assert desk.saved == before

    @pytest.mark.parametrize("mode", ["webhook", "events"])
    def test_saved_settings_of_deleted_resources_are_removed_after_consent(
        self, desk: Desk, mode: str
    ) -> None:
        desk.with_number_alone()
        desk.setup("--mode", mode)
        for held in (desk.twilio.services, desk.twilio.sinks, desk.twilio.subscriptions):
            held.clear()
        desk.number.service_sid = None
        writes = len(desk.writes())
        assert "which no longer exists" in desk.setup("--undo").stdout
        assert desk.saved == set()
        assert len(desk.writes()) == writes

    def test_a_sink_to_an_earlier_address_is_found_by_its_sid(self, desk: Desk) -> None:
        desk.setup("--mode", "events")
        desk.public_url = "https://new.example.edu"
        desk.setup("--mode", "events")
        assert len(desk.twilio.sinks) == 2
        desk.setup("--undo")
        assert (desk.twilio.sinks, desk.twilio.subscriptions) == ({}, {})
        assert desk.saved == set()

    def test_a_released_number_does_not_block_the_rest(self, desk: Desk) -> None:
        desk.with_number_alone(sms_url=SURVEY)
        desk.projects["asthma"]["keyword_fallback"] = True
        desk.projects["sleep"] = builders.project_table()
        desk.setup("--mode", "webhook")
        del desk.twilio.senders[desk.number.sid]
        result = desk.setup("--undo")
        assert "which no longer exists" in result.stdout
        assert desk.service.inbound_request_url is None
        assert desk.saved == set()

    def test_a_sender_that_a_person_removed_is_forgotten(self, desk: Desk) -> None:
        desk.twilio.add_sender(OWN_NUMBER)
        desk.projects["asthma"]["senders"] = [OWN_NUMBER]
        desk.setup("--mode", "events")
        desk.number.service_sid = None
        assert "which no longer exists" in desk.setup("--undo").stdout
        assert desk.saved == set()

    def test_a_resource_that_is_deleted_before_consent_is_no_error(self, desk: Desk) -> None:
        desk.setup("--mode", "events")
        config = desk.services().config
        side = TwilioAccountView(working_client(config.twilio["main"]), config.public_url)
        plan = plan_undo("asthma", config, side, desk.redis, ["asthma"])
        desk.twilio.subscriptions.clear()
        for step in plan.steps:
            step.apply()
        assert (desk.twilio.sinks, desk.saved) == ({}, set())

    def test_no_secret_and_no_participants_number_is_saved(self, desk: Desk) -> None:
        desk.twilio.sender_at(SENDER).sms_url = SURVEY
        desk.setup("--mode", "webhook")
        desk.setup("--mode", "events")
        (saved,) = desk.redis.keys("optout:twilio-setup:*")
        (senders,) = set(desk.redis.keys("*")) - {saved}
        stored = str([desk.redis.hgetall(saved), desk.redis.smembers(senders)])
        assert AUTH_TOKEN not in stored
        assert SENDER not in stored


class TestLogins:
    """Twilio takes user:password@ in an address. Source: Twilio docs, "Webhooks security"."""

    def test_it_is_restored_and_not_shown(self, desk: Desk) -> None:
        desk.service.inbound_request_url, desk.service.use_inbound_webhook_on_number = WITH_LOGIN, False
        desk.projects["asthma"]["forward_url"] = SURVEY
        shown = [desk.setup("--mode", "webhook").stdout]
        assert desk.service.inbound_request_url == OURS
        shown.append(desk.setup("--undo").stdout)
        assert desk.service.inbound_request_url == WITH_LOGIN
        assert all("https://…@redcap.example.edu/surveys/?s=EXAMPLE" in text for text in shown)
        assert not any("hunter" in text for text in shown)

    def test_the_login_of_a_number_is_restored_and_not_shown(self, desk: Desk) -> None:
        desk.with_number_alone(sms_url=WITH_LOGIN)
        desk.projects["asthma"] |= {"keyword_fallback": True, "forward_url": SURVEY}
        shown = desk.setup("--mode", "webhook").stdout + desk.setup("--undo").stdout
        assert desk.number.sms_url == WITH_LOGIN
        assert shown.count("https://…@redcap.example.edu") == 2
        assert "hunter" not in shown

    @pytest.mark.parametrize("other", ["", "https://other.example.edu/"])
    def test_an_address_with_a_login_cannot_become_forward_url(self, desk: Desk, other: str) -> None:
        desk.twilio.sender_at(SENDER).sms_url = WITH_LOGIN
        desk.twilio.add_sender(OWN_NUMBER, service=desk.service, sms_url=other)
        before = desk.state()
        result = desk.setup("--mode", "webhook")
        assert (result.exit_code, desk.state()) == (1, before)
        assert "https://…@redcap.example.edu/surveys/?s=EXAMPLE is called with a login" in result.stdout
        assert "hunter" not in result.stdout

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            (SURVEY, SURVEY),
            ("", ""),
            ("https://u:p@host/a", "https://…@host/a"),
            ("HTTPS://u:p/q@host/a", "HTTPS://…@host/a"),
            ("https://u:p@ss/w@host", "https://…@host"),
            ("https://u:p?q#r@host", "https://…@host"),
            ("u:p@host", "…@host"),
        ],
    )
    def test_a_login_in_any_form_is_removed(self, url: str, shown: str) -> None:
        assert without_login(url) == shown
