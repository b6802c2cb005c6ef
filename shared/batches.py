"""Splitting work into batches, for requests and commands that take a limited number of items."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Return the items in lists of at most `size`; reads no further than the current batch."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
