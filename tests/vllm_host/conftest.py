"""vLLM as the host. `make vllm` runs this; elsewhere vLLM is missing and nothing is collected.

The folder is not called vllm: beside an installation without vLLM, `import vllm` would find it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
# Read by vLLM when it is imported. One process: its model can be looked at.
SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # to look at it where there are several, too
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # Two ranks on two cores of one NUMA node.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_CACHE_ROOT": str(PROJECT / "build" / "vllm-cache"),
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

# pytest reads this file in `make test`, too, whose other tests the settings must not reach.
if find_spec("vllm"):
    os.environ |= SETTINGS
else:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the checkpoints of the session lie; one of them has half a gigabyte."""
    folder = tmp_path_factory.mktemp("checkpoints")
    yield folder
    shutil.rmtree(folder)
