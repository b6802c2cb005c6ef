"""Ready-made fictional studies for tests, the demo and benchmarks."""

from __future__ import annotations

from tests.simulators.redcap.project import Event, Field, Project, Repeating

ENROLMENT_EVENT = "enrolment_arm_1"
WEEK_EVENT = "week_1_arm_1"

# Ten Californian area codes; 555 comes first, then exchanges above it, so that millions fit.
_AREAS = ("650", "415", "510", "408", "707", "831", "925", "209", "916", "530")
_STYLES = ("({0}) {1}-{2}", "{0}-{1}-{2}", "{0}{1}{2}", "{0}.{1}.{2}", "{0} {1} {2}")


def _phone_parts(number: int) -> tuple[str, str, str]:
    block, line = divmod(number, 10_000)
    exchange, area = divmod(block, len(_AREAS))
    return _AREAS[area], str(555 + exchange), f"{line:04d}"


def fictional_phone(number: int) -> str:
    """The n-th made-up phone number, in E.164."""
    return "+1" + "".join(_phone_parts(number))


def fictional_phone_as_typed(number: int) -> str:
    """The same number in one of the spellings that people type."""
    return _STYLES[number % len(_STYLES)].format(*_phone_parts(number))


def _enrolment_fields(phone_form: str = "enrolment") -> tuple[Field, ...]:
    return (
        Field("record_id", "enrolment", label="Record ID"),
        Field("first_name", "enrolment", label="First name", identifier=True),
        Field("email", "enrolment", validation="email", label="E-mail", identifier=True),
        Field("sex", "enrolment", kind="radio", choices=(("1", "Female"), ("2", "Male")), label="Sex"),
        Field("age", "enrolment", validation="integer", label="Age"),
        Field("mobile", phone_form, validation="phone", label="Mobile phone", identifier=True),
    )


def _texting_fields(opt_out_validation: str, form: str = "texting") -> tuple[Field, ...]:
    return (
        Field("sms_opt_out_at", form, validation=opt_out_validation, label="Opted out of texts at"),
        Field("sms_opt_out", form, kind="checkbox", choices=(("1", "Opted out"),), label="Opted out"),
        Field("texting_notes", form, kind="notes", label="Notes about texting"),
    )


def classic_study(
    title: str = "Asthma diary",
    *,
    opt_out_validation: str = "datetime_seconds_ymd",
    phone_validation: str = "phone",
    project_id: int = 101,
) -> Project:
    """Two forms, no events: `enrolment` with the phone, `texting` with the opt-out."""
    project = Project(title, _enrolment_fields() + _texting_fields(opt_out_validation), project_id)
    project.change_field("mobile", validation=phone_validation)
    return project


def longitudinal_study(
    title: str = "Sleep and light",
    *,
    opt_out_validation: str = "datetime_seconds_ymd",
    opt_out_event: str = ENROLMENT_EVENT,
    project_id: int = 102,
) -> Project:
    """Three events; the phone stands at `enrolment_arm_1`, `sleep_log` at the weekly events."""
    sleep_log = (
        Field("hours_slept", "sleep_log", validation="number", label="Hours slept"),
        Field("sleep_problem", "sleep_log", kind="checkbox", choices=(("1", "Noise"), ("2", "Light"))),
    )
    forms = {ENROLMENT_EVENT: ["enrolment"], WEEK_EVENT: ["sleep_log"], "week_2_arm_1": ["sleep_log"]}
    forms[opt_out_event].append("texting")
    labels = ("Enrolment", "Week 1", "Week 2")
    return Project(
        title,
        _enrolment_fields() + _texting_fields(opt_out_validation) + sleep_log,
        project_id,
        events=tuple(
            Event(name, label, tuple(some)) for (name, some), label in zip(forms.items(), labels, strict=True)
        ),
    )


def repeating_phone_study(
    title: str = "Family contacts",
    *,
    opt_out_validation: str = "datetime_seconds_ymd",
    opt_out_form: str = "texting",
    project_id: int = 103,
) -> Project:
    """The phone stands in the repeating form `contacts`; the opt-out on the base row unless told."""
    return Project(
        title,
        _enrolment_fields(phone_form="contacts") + _texting_fields(opt_out_validation, opt_out_form),
        project_id,
        repeating=(Repeating("contacts"),),
    )


def enrol(project: Project, count: int, *, start: int = 1) -> None:
    """Adds `count` participants with consecutive record ids and made-up phone numbers."""
    for number in range(start, start + count):
        project.add_record(
            str(number),
            first_name=f"Participant {number}",
            mobile=fictional_phone_as_typed(number),
        )
