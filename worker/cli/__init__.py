"""The `optout` command. One module per subcommand; each prints tables on a terminal, plain lines otherwise."""

import os
import sys

import click
from redis.exceptions import NoPermissionError, RedisError

from shared.errors import OptOutError
from shared.logs.setup import configure_logging
from shared.redis_rights import refused_command
from worker.cli.check import check
from worker.cli.events import events
from worker.cli.export import export
from worker.cli.forget import forget
from worker.cli.reconcile import reconcile
from worker.cli.record import record
from worker.cli.replay import replay
from worker.cli.review import review
from worker.cli.setup import setup
from worker.cli.status import status
from worker.cli.summary import summary
from worker.cli.test_message import test_message
from worker.cli.top import top


class _Commands(click.Group):
    """Turns the program's own errors into one clear line and exit code 2, without a stack trace."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except OptOutError as error:
            click.echo(f"error: {error}", err=True)
        except NoPermissionError as error:
            right = refused_command(error)
            click.echo(f"error: the Redis user lacks a right ({right}); optout check names all", err=True)
        except RedisError as error:
            click.echo(
                f"error: Redis does not answer ({type(error).__name__}); is OPTOUT_REDIS_URL right?", err=True
            )
        sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="opt-out-bridge")
def main() -> None:
    """Opt-Out Bridge: Twilio opt-outs, recorded in REDCap.

    Reads the file that OPTOUT_CONFIG names (default config.toml) and the Redis at OPTOUT_REDIS_URL.
    """
    configure_logging(os.environ.get("OPTOUT_LOG_LEVEL") or "WARNING")


for command in (
    check,
    setup,
    test_message,
    top,
    events,
    status,
    export,
    summary,
    record,
    review,
    replay,
    reconcile,
    forget,
):
    main.add_command(command)
