"""The configuration itself: secrets at their places, addresses in the clear, rates that clash."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime
from urllib.parse import urlsplit

from shared.config import Config
from shared.config.schema import LOOPBACK, SmtpOAuth2, Table, TwilioAccount
from shared.config.secrets import Secret
from shared.errors import ConfigError, PublishedSecret
from shared.ledger.platform.loaded_configurations import LoadedConfiguration, loaded_configurations
from shared.redis_client import RedisClient
from worker.checks.findings import Finding, FindingId, Passed

SHORTEST_HASH_KEY = 32
# REDCap's default limit is 600 per minute and address; a third of it is left to everybody else there.
SAFE_RATE = 400


def check_configuration(config: Config, projects: list[str]) -> Iterator[Finding | Passed]:
    """What can be said without asking anybody."""
    yield from check_secrets(config, projects)
    yield from _hash_key(config)
    if in_the_clear(config.public_url):
        yield Finding(
            id="public-url-not-https", subject="configuration", observed=f"public_url is {config.public_url}"
        )
    for name in projects:
        project = config.projects[name]
        if in_the_clear(project.redcap_url):
            yield Finding(id="redcap-not-https", subject=name, observed=f"redcap_url is {project.redcap_url}")
        if project.keyword_fallback:
            yield Finding(id="keyword-fallback-needless", subject=name, observed="keyword_fallback = true")
        if not project.notify:
            yield Finding(id="nobody-notified", subject=name, observed="notify is empty")
    yield from _rates(config, projects)


def check_loaded(
    config: Config, redis: RedisClient, now: Callable[[], datetime]
) -> Iterator[Finding | Passed]:
    """Whether the running processes have loaded what this command reads."""
    running = list(loaded_configurations(redis, now_ms=int(now().timestamp() * 1000)))
    for loaded in running:
        yield from _not_loaded(loaded, config)
    if running and all(loaded.digest == config.digest for loaded in running):
        yield Passed("configuration", f"{len(running)} processes have loaded this file ({config.digest})")


def _not_loaded(loaded: LoadedConfiguration, config: Config) -> Iterator[Finding]:
    trouble = loaded.trouble
    if trouble.problem:
        seen = f"{loaded.process} keeps {loaded.digest}: {trouble.file}: {trouble.problem.replace(chr(10), '; ')}"
        yield Finding(id="configuration-invalid", subject="configuration", observed=seen)
    elif loaded.digest != config.digest:
        observed = f"{loaded.process} has loaded {loaded.digest}, and the file is {config.digest} now"
        yield Finding(id="configuration-stale", subject="configuration", observed=observed)
    if trouble.needs_restart:
        seen = f"{loaded.process}: {', '.join(trouble.needs_restart)}"
        yield Finding(id="configuration-needs-restart", subject="configuration", observed=seen)


def in_the_clear(url: str) -> bool:
    """Whether an address is plain http to another machine; this machine's own wire has no eavesdropper."""
    parts = urlsplit(url)
    return parts.scheme == "http" and parts.hostname not in LOOPBACK


def check_secrets(config: Config, projects: list[str]) -> Iterator[Finding]:
    """Every secret that the configuration refers to is there."""
    for subject, table in _tables(config, projects):
        for key, secret in _secrets(table):
            try:
                secret.resolve()
            except ConfigError as error:
                id_ = _secret_finding(error, key, table)
                yield Finding(id=id_, subject=subject, observed=f"{key}: {error.problems[0]}")


def _tables(config: Config, projects: list[str]) -> Iterator[tuple[str, Table]]:
    """The tables with secrets, each with the subject of its findings."""
    yield "configuration", config
    if config.smtp:
        yield "smtp", config.smtp
    yield from ((f"twilio.{name}", account) for name, account in config.twilio.items())
    yield from ((name, config.projects[name]) for name in projects)


def _secrets(table: Table) -> Iterator[tuple[str, Secret]]:
    """The secrets of a table and of its `oauth2`, each with its key."""
    for key, value in table:
        if isinstance(value, SmtpOAuth2):
            yield from ((f"{key}.{inner}", secret) for inner, secret in _secrets(value))
        values = value if isinstance(value, list) else [value]
        yield from ((key, each) for each in values if isinstance(each, Secret))


def _secret_finding(error: ConfigError, key: str, table: Table) -> FindingId:
    if isinstance(error, PublishedSecret):
        return "secret-published"
    replaced = isinstance(table, TwilioAccount) and table.api_key and key == "auth_token"
    return "auth-token-not-here" if replaced else "secret-missing"


def require_own_secrets(config: Config) -> None:
    """Raises PublishedSecret if any process would use a secret of the demo. Missing secrets are findings only."""
    published = [
        finding.observed
        for finding in check_secrets(config, list(config.projects))
        if finding.id == "secret-published"
    ]
    if published:
        raise PublishedSecret("configuration", published)


def _hash_key(config: Config) -> Iterator[Finding]:
    try:
        length = len(config.hash_key.resolve())
    except ConfigError:
        return  # reported as secret-missing
    if length < SHORTEST_HASH_KEY:
        yield Finding(id="hash-key-short", subject="configuration", observed=f"it has {length} characters")


def _rates(config: Config, projects: list[str]) -> Iterator[Finding]:
    """All projects of a host share its budget, those that were not asked about included."""
    rates: dict[str, dict[str, int]] = defaultdict(dict)
    for name, project in config.projects.items():
        rates[project.redcap_host][name] = project.redcap_requests_per_minute
    for host, sharing in rates.items():
        if asked := [name for name in sharing if name in projects]:
            yield from _host_rates(host, sharing, subject=asked[0])


def _host_rates(host: str, rates: dict[str, int], *, subject: str) -> Iterator[Finding]:
    lowest = min(rates.values())
    if max(rates.values()) > lowest:
        listed = ", ".join(f"{name} {rate}" for name, rate in rates.items())
        seen = f"{host}: {listed}; {lowest} holds for all"
        yield Finding(id="redcap-rates-differ", subject=subject, observed=seen)
    if lowest > SAFE_RATE:
        seen = f"{host}: {lowest} requests per minute"
        yield Finding(id="redcap-rate-near-ban", subject=subject, observed=seen)


def accounts_of(config: Config, projects: list[str]) -> list[str]:
    """The Twilio accounts that projects use, each once."""
    return list(dict.fromkeys(config.projects[name].twilio for name in projects))
