"""A sign of life for container engines: a file that is touched for as long as the process does its work.

Cheaper than `celery inspect ping`, which starts an interpreter and asks over the broker each time. A health
check looks at the file's age: `find "$OPTOUT_HEARTBEAT_FILE" -mmin -2` (beat touches it once a minute).
"""

import os
from contextlib import suppress
from pathlib import Path


def beat() -> None:
    """Touch the file that `OPTOUT_HEARTBEAT_FILE` names; nothing where it is not set, or cannot be written."""
    if path := os.environ.get("OPTOUT_HEARTBEAT_FILE"):
        with suppress(OSError):
            Path(path).touch()
