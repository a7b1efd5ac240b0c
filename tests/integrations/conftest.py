"""Tiny models of real architectures, compressed once for this folder's tests."""

from __future__ import annotations

import pytest
from packed_models import Case, make_case
from tiny_models import ARCHITECTURES, BY_NAME


@pytest.fixture(scope="session", params=ARCHITECTURES, ids=lambda a: a.name)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp(request.param.name))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The smallest of them, for whatever does not depend on the architecture."""
    return make_case(BY_NAME["llama"], tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Gated DeltaNet and a vision tower, where only these matter."""
    return make_case(BY_NAME["qwen3_5"], tmp_path_factory.mktemp("qwen"))
