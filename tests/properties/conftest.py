"""How many cases Hypothesis tries: some hundreds in `make test`, thousands with HYPOTHESIS_PROFILE=thorough.

The former are the same in every run, so that a change is judged by itself; the latter look for new ones.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# A case is a whole history, so that its time depends on its length: no deadline per case.
_common = settings(
    deadline=None,
    stateful_step_count=40,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
settings.register_profile("quick", _common, max_examples=60, derandomize=True)
settings.register_profile("thorough", _common, max_examples=4000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
