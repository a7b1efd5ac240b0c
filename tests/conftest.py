"""Settings of the whole suite. Lying here, it also makes `factories` importable below."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Shared processors make single examples slow now and then: that says nothing about the code.
settings.register_profile(
    "tq3", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("tq3")
