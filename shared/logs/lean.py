"""Services take less memory without what only colours a terminal's text."""

import sys
from typing import Any, cast


def leave_out_colours() -> None:
    """Call before structlog and Celery's commands are imported: they load Rich and Pygments if installed, 6 MB."""
    modules = cast(dict[str, Any], sys.modules)
    modules["rich"] = modules["pygments"] = None
