"""The worker without pacing, as version 1 was: background work takes all processes, and the whole budget of REDCap.

python -m tests.benchmarks.unpaced_worker worker
"""

from __future__ import annotations

from typing import Any

from worker import services
from worker.__main__ import main
from worker.redcap.rate_limit import RateLimiter
from worker.steps import background

PLACES = 64


class _Unpaced(RateLimiter):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options | {"background": False})


if __name__ == "__main__":
    background.PLACES = PLACES
    services.RateLimiter = _Unpaced  # type: ignore[attr-defined]
    main(auto_envvar_prefix="CELERY")
