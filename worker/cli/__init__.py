"""The `optout` command. One module per subcommand; each prints tables on a terminal, plain lines otherwise."""

import os
import sys
from contextlib import suppress
from importlib import import_module

import click
from redis.exceptions import NoPermissionError, RedisError

from shared.causes import host_and_port
from shared.config import redis_url
from shared.errors import (
    ConfigError,
    MailDeferred,
    MailRejected,
    OptOutError,
    ProjectProblem,
    RedcapRejected,
    RedcapUnavailable,
    TwilioRejected,
    TwilioUnavailable,
)
from shared.logs.setup import configure_logging
from shared.redis_client import NotReplicated, redis_cause
from shared.redis_rights import refused_command

# Each in a module of its name, which only this command loads: all together take a second.
COMMANDS = (
    "check", "setup", "test-message", "top", "events", "status", "export", "summary", "record", "review",
    "replay", "reconcile", "forget",
)  # fmt: skip

CANNOT_START = 2
# The exit code says what kind of system is in the way; 1 is each command's own.
EXIT_CODES: dict[type[OptOutError], int] = {
    RedcapUnavailable: 4, RedcapRejected: 4, ProjectProblem: 4,
    TwilioUnavailable: 5, TwilioRejected: 5,
    MailDeferred: 6, MailRejected: 6,
}  # fmt: skip


def load_command(name: str) -> click.Command:
    """Return one of `COMMANDS`."""
    module = name.replace("-", "_")
    command: click.Command = getattr(import_module(f"worker.cli.{module}"), module)
    return command


class _Commands(click.Group):
    """Loads a command when it is used; turns errors into one clear line and an exit code, without a stack trace."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        return load_command(cmd_name) if cmd_name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OptOutError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(EXIT_CODES.get(type(error), CANNOT_START))
        except NoPermissionError as error:
            right = refused_command(error)
            click.echo(f"error: the Redis user lacks a right ({right}); optout check names all", err=True)
        except NotReplicated as error:
            click.echo(
                f"error: {redis_cause(error)}; repeat the command when a replica runs, as a failover may lose it",
                err=True,
            )
        except RedisError as error:
            click.echo(
                f"error: Redis does not answer ({redis_cause(error)}); is OPTOUT_REDIS_URL right?{_named_redis()}",
                err=True,
            )
        sys.exit(CANNOT_START)


def _named_redis() -> str:
    """Where it points, without its login; "" if it is invalid."""
    with suppress(ConfigError):
        return f" It names {host_and_port(redis_url())}."
    return ""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="opt-out-bridge")
@click.option("--headings", is_flag=True, help="Also in pipes, begin lists with a line of headings.")
@click.pass_context
def main(context: click.Context, headings: bool) -> None:
    """Opt-Out Bridge: Twilio opt-outs, recorded in REDCap.

    Reads the file that OPTOUT_CONFIG names (default config.toml) and the Redis at OPTOUT_REDIS_URL.
    """
    context.obj = {"headings": headings}
    configure_logging(os.environ.get("OPTOUT_LOG_LEVEL") or "WARNING")
