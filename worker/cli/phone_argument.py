"""A phone number that a person typed."""

import sys
from collections.abc import Collection

import click

from shared.domain.phone import numbers_in
from worker.services import Services


def typed(number: str) -> str:
    """The number as it was typed; "-" reads it from standard input, out of history and process list."""
    return sys.stdin.readline().strip() if number == "-" else number


def one_number(text: str, project: str, services: Services, *, hint: str = "NUMBER") -> str:
    """Its E.164, read as the project reads numbers. Raises click.BadParameter where it is not one number."""
    return readings(text, [services.config.projects[project].default_region], hint=hint)[0]


def readings(text: str, regions: Collection[str], *, hint: str = "NUMBER") -> list[str]:
    """Its E.164 by each region that it may be of. Raises click.BadParameter where it is one number by none."""
    found = [list(numbers_in(text, region)) for region in regions]
    each = sorted({numbers[0] for numbers in found if len(numbers) == 1})
    if not each:
        raise click.BadParameter("is not one phone number", param_hint=hint)
    return each
