"""When a study's changes or its reconciliation are late: one rule for the console and the e-mails to the operator."""

from enum import Enum, auto

from shared.ledger.projects.nights import RECONCILE_OVERDUE_MS

WAITS_TOO_LONG_MS = 3600 * 1000


class Reconciled(Enum):
    """How the reconciliation of a study stands."""

    NEVER = auto()
    IN_TIME = auto()
    FAILED = auto()
    OVERDUE = auto()


def reconciled(success_ms: int, failure_ms: int, now_ms: int) -> Reconciled:
    """Judge the times of the last success and the last failure; 0 is never."""
    if failure_ms > success_ms:
        return Reconciled.FAILED
    if not success_ms:
        return Reconciled.NEVER
    return Reconciled.OVERDUE if now_ms - success_ms > RECONCILE_OVERDUE_MS else Reconciled.IN_TIME


def waits_too_long(oldest_ms: float, now_ms: int) -> bool:
    """Whether the oldest unfinished change has waited too long; 0 is none."""
    return bool(oldest_ms) and now_ms - oldest_ms > WAITS_TOO_LONG_MS
