"""The words of the console: what states, sources, outcomes and problems are called."""

from shared.domain.events import Change, Source, State
from shared.ledger.opt_outs.blocks import BlockState

CHANGES = {Change.STOP: "Opt-out", Change.START: "Opt-in", Change.UNCLEAR: "Unclear"}
STATES = {
    State.RECEIVED: "Received",
    State.PENDING: "Waiting for REDCap",
    State.UPDATED: "In REDCap",
    State.ALREADY_CURRENT: "REDCap showed it already",
    State.SUPERSEDED: "Superseded",
    State.NO_MATCHING_RECORD: "No record holds the number",
    State.NEEDS_REVIEW: "Waits for a decision",
    State.FAILED: "Not saved",
}
MEANINGS = {
    State.RECEIVED: "The change is stored. A worker looks for the records that hold the number.",
    State.PENDING: "The records are known. A worker writes to REDCap as soon as it can.",
    State.UPDATED: "REDCap was written.",
    State.ALREADY_CURRENT: "REDCap showed the right value already. Nothing had to be written.",
    State.SUPERSEDED: "Something else counts instead, such as a later change of the same participant.",
    State.NO_MATCHING_RECORD: "No record of this study holds the number, so nothing was written.",
    State.NEEDS_REVIEW: "A person has to decide. Until then, nothing is written.",
    State.FAILED: "The change is not in REDCap.",
}
SOURCES = {
    Source.WEBHOOK: "webhook",
    Source.EVENT_STREAM: "Event Streams",
    Source.MESSAGE_LOG: "Twilio's message log",
    Source.BLOCKED_MESSAGE: "a text that Twilio blocked",
    Source.STAFF: "staff",
}
OUTCOMES = {
    "proved": "proved",
    "open": "proved, not all in REDCap",
    "partly_blind": "partly blind",
    "failed": "failed",
    "missed": "missed",
    "not_yet": "none yet",
}
SIGNS = {"proved": "✓", "open": "!", "partly_blind": "◐", "failed": "✕", "missed": "–", "not_yet": ""}
EXPLANATIONS = {
    "proved": "Twilio's log was read, and REDCap shows every change.",
    "open": "Twilio's log was read. Some changes are not in REDCap yet.",
    "partly_blind": "Twilio's log did not show everything, so a missed opt-out cannot be ruled out.",
    "failed": "The reconciliation did not reach its end.",
    "missed": "No reconciliation ended on this day.",
    "not_yet": "Before the first reconciliation, or not yet run today.",
}
MAILS = {"": "none", "sent": "sent", "due": "due"}

BLOCKS = {
    BlockState.NONE: "not asked for",
    BlockState.WAITING: "Twilio has yet to block the number",
    BlockState.BLOCKED: "Number blocked",
    BlockState.UNBLOCKED: "Number unblocked",
    BlockState.FAILED: "Twilio did not block the number",
    BlockState.NOT_NEEDED: "no longer needed",
}

# By the code of what keeps a study from being written; the detail beside it says more.
PROBLEMS = {
    "redcap_forbidden": "REDCap rejects the token",
    "redcap_wrong_project": "the token opens another REDCap project",
    "redcap_no_such_field": "REDCap does not know a configured field",
    "redcap_rejected": "REDCap rejects the request",
    "secret_missing": "a secret is missing",
    "opt_out_event_missing": "the event of the opt-out field is missing",
    "no_such_event": "a configured event does not exist",
    "opt_out_field_is_computed": "the opt-out field is computed",
    "opt_out_field_is_no_text": "the opt-out field is not a text field",
    "opt_out_field_holds_no_time": "the opt-out field cannot hold a time",
    "phone_field_unfit": "the phone field cannot hold a number",
}
FIXES = {
    "redcap_forbidden": "Give the token's user API rights again, or put a new token into the study's secret.",
    "secret_missing": "Put the secret into its file.",
}


def problem_words(code: str) -> str:
    """What a problem is called."""
    return PROBLEMS.get(code, code.replace("_", " "))


def number_of(number: int, one: str, many: str = "") -> str:
    """A number with its noun."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
