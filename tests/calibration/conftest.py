"""A tiny model and its moments."""

from __future__ import annotations

import pytest
from support.calibration.cases import Case, make_case


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case("llama", tmp_path_factory.mktemp("calibrated"))
