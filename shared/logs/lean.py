"""Services take less memory without what only the command line shows."""

import sys
from typing import Any, cast


def leave_out_rich() -> None:
    """Call before structlog is imported: it imports Rich wherever that is installed, for terminals. 5 MB."""
    cast(dict[str, Any], sys.modules)["rich"] = None
