"""`python -m worker worker|beat|flower`: as `celery -A worker.celery_app …`, in less memory.

Celery's own command imports Flower, and a shell, into each process: 20 MB more.
"""

from importlib import import_module
from typing import NamedTuple

import click

from shared.logs.lean import leave_out_colours


class _Process(NamedTuple):
    application: str  # the module with the Celery application
    command: str  # the module with the command, which has the name of the process


PROCESSES = {
    "worker": _Process("worker.celery_app", "celery.bin.worker"),
    "beat": _Process("worker.beat_app", "celery.bin.beat"),
    "flower": _Process("worker.beat_app", "flower.command"),
}


class _Processes(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(PROCESSES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in PROCESSES:
            return None
        leave_out_colours()
        process = PROCESSES[cmd_name]
        app = import_module(process.application).app
        context = import_module("celery.bin.base").CLIContext
        ctx.obj = context(app=app, no_color=True, workdir=None, quiet=True)
        command: click.Command = getattr(import_module(process.command), cmd_name)
        return command


@click.group(cls=_Processes)
def main() -> None:
    """Run one of the processes of Celery."""


if __name__ == "__main__":
    main(auto_envvar_prefix="CELERY")
