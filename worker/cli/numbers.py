"""A phone number that a person typed."""

import sys

import click

from shared.phone import numbers_in
from worker.services import Services


def typed(number: str) -> str:
    """The number as it was typed; "-" reads it from standard input, out of history and process list."""
    return sys.stdin.readline().strip() if number == "-" else number


def one_number(text: str, project: str, services: Services, *, hint: str = "NUMBER") -> str:
    """Its E.164, read as the project reads numbers. Raises click.BadParameter where it is not one number."""
    found = list(numbers_in(text, services.config.projects[project].default_region))
    if len(found) != 1:
        raise click.BadParameter("is not one phone number", param_hint=hint)
    return found[0]
