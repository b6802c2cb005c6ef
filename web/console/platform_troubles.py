"""What is wrong with the platform itself."""

from collections.abc import Iterator
from zoneinfo import ZoneInfo

from shared.domain.events import milliseconds
from shared.ledger.platform.heartbeats import SilentProcess
from shared.ledger.platform.loaded_configurations import invalid_files, running_processes
from shared.ledger.platform.platform_status import PlatformStatus, RedisStatus
from web.console.context import console, local_text, now
from web.console.verdict import Level, Trouble

EXPECTED = ("web", "worker", "beat")
_ALMOST_FULL = 0.8


def platform_troubles() -> list[Trouble]:
    """Files that processes cannot load, processes that do not run, rejected e-mails, a Redis that does not store."""
    status = PlatformStatus(console().ledger.redis)
    running = {each.kind for each in status.processes(milliseconds(now()))}
    return [
        *_configuration(),
        *(_silent(kind) for kind in EXPECTED if kind not in running),
        *(_missing(each) for each in status.silent(milliseconds(now())) if each.kind in running),
        *_mail(status.rejection()),
        *_redis(status.redis()),
    ]


def _configuration() -> Iterator[Trouble]:
    redis, now_ms = console().ledger.redis, milliseconds(now())
    for invalid in invalid_files(redis, now_ms=now_ms):
        first, *_ = invalid.problem.splitlines()
        text = f"{', '.join(invalid.processes)}: the last valid configuration is kept, as {invalid.file} is invalid"
        yield Trouble(f"{text}: {first}", "Correct the file; optout check --config-only names every mistake.")
    for each in running_processes(redis, now_ms=now_ms):
        if each.trouble.needs_restart:
            text = f"{each.kind} on {each.host}: {', '.join(each.trouble.needs_restart)} changed"
            yield Trouble(text, "Restart it; with Docker, run make apply.", Level.ATTENTION)


def _silent(kind: str) -> Trouble:
    return Trouble(
        f"{kind} does not run, or does not reach Redis", f"Start it, and read its log: make logs S={kind}"
    )


def _missing(process: SilentProcess) -> Trouble:
    since = local_text(process.since_ms, ZoneInfo(console().config.time_zone))
    return Trouble(
        f"{process.kind} on {process.host} (process {process.process_id}) has been silent since {since}",
        "Start it again. One that was removed without being stopped is forgotten after a day.",
        Level.ATTENTION,
    )


def _mail(rejection: str) -> Iterator[Trouble]:
    if rejection:
        yield Trouble(
            f"the mail server rejected the last e-mail ({rejection})",
            "Correct the mail server's settings; e-mails are tried again.",
            Level.ATTENTION,
        )


def _redis(redis: RedisStatus) -> Iterator[Trouble]:
    if not redis.last_write_ok:
        yield Trouble("Redis cannot write to its disk", "Make room on the disk, and read Redis' log.")
    if redis.is_durable is False:
        fix = "Set appendonly yes and appendfsync always, as in deploy/redis.conf."
        yield Trouble("Redis does not store changes on disk", fix)
    if redis.limit_bytes and redis.used_bytes > _ALMOST_FULL * redis.limit_bytes:
        share = round(100 * redis.used_bytes / redis.limit_bytes)
        yield Trouble(
            f"Redis uses {share} % of its memory", "Raise REDIS_MAXMEMORY in .env, then make apply."
        )
