"""Settings of the whole suite."""

from __future__ import annotations

import os

import pytest
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


@pytest.fixture(scope="session", autouse=True)
def _elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Children look for modules in their working folder first: in the project's they would find the
    package without its compiled kernels, instead of the one that is installed.
    """
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
