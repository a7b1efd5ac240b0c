"""Makes tests/golden/quantised with the programs that define these layouts, beside the tests':

pip install --no-deps compressed-tensors==0.20.1 loguru
pip install --no-deps nvidia-modelopt==0.47.0 omegaconf antlr4-python3-runtime==4.9.3 pulp
PYTHONPATH=tests python -m support.dequantization.make_golden
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from support.dequantization import by_compressed_tensors, by_modelopt

GOLDEN = Path(__file__).parents[2] / "golden" / "quantised"


def main() -> None:
    """Each case in a folder of its own: what the program wrote, and decoded.safetensors."""
    shutil.rmtree(GOLDEN, ignore_errors=True)
    for prefix, program in (("ct", by_compressed_tensors), ("modelopt", by_modelopt)):
        for name, case in program.CASES.items():
            folder = GOLDEN / f"{prefix}-{name}"
            folder.mkdir(parents=True)
            decoded = program.write(folder, case)
            save(decoded, folder, program.WRITER)


def save(decoded: dict[str, torch.Tensor], folder: Path, writer: str) -> None:
    """The weights that the program itself makes of what it wrote."""
    found = {name: tensor.detach().contiguous() for name, tensor in decoded.items()}
    by = f"{writer}, torch {torch.__version__}"
    save_file(found, folder / "decoded.safetensors", metadata={"by": by})


if __name__ == "__main__":
    main()
