"""Settings of the whole suite. Lying here, it also makes `factories` importable below."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests run in as many processes as there are processors. Were each to use as many threads again,
# torch's would spin for each other: tests of small models took five times as long. torch reads this
# when it is imported; children inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Shared processors make single examples slow now and then: that says nothing about the code.
settings.register_profile(
    "tq3", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tq3")
