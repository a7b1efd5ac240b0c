"""How far the grids that models came on still favour a scheme, by how far a twin is off them.

Mean relative squared error over the matrices of one layer. On Gaussian weights it is 0.0227 for
Q3_K, 0.0059 for IQ4_XS, 0.0051 for Q4_K. Large factors spoil blocks of weights instead: the rows
of models as they are trained are even.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from quality import llama, models
from quality.bench import Bench, relative_error
from quality.ours import Coded, Format

SPREADS = (0.0, 0.1, 0.3)
SCHEMES = ("Q3_K", "IQ4_XS", "Q4_K", "tq3 3 bits", "tq3 4 bits")
_LAYER = 3


def measure(bench: Bench) -> list[dict[str, Any]]:
    """A row for each model and spread: the error of each scheme."""
    return [_row(bench, model, spread) for model in models.PACKAGES for spread in SPREADS]


def _row(bench: Bench, model: str, spread: float) -> dict[str, Any]:
    loaded = models.load(models.folder_of(model, bench.work))
    models.take_off_grid(loaded, spread)
    layer = loaded.model.layers[_LAYER]
    matrices = {
        name: parameter.detach().bfloat16().float()
        for name, parameter in layer.named_parameters()
        if parameter.ndim == 2
    }
    row: dict[str, Any] = {"model": model, "spread": spread}
    for scheme in SCHEMES:
        coded = {name: _code(scheme, weight).weight for name, weight in matrices.items()}
        row[scheme] = relative_error(matrices, coded)
    return row


def _code(scheme: str, weight: Tensor) -> Coded:
    if scheme.startswith("tq3"):
        return Format(int(scheme.split()[1]), 64, norms="float16").code(weight)
    return llama.code(weight, scheme)
