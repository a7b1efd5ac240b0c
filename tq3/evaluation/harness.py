"""`python -m tq3.evaluation.harness ...`: lm_eval with these arguments, TQ3 checkpoints packed.

Its model `hf` calls from_pretrained, before which our part of Transformers has to be imported.
"""

from __future__ import annotations

import runpy
from importlib import import_module
from importlib.util import find_spec

from tq3.errors import UsageError


def main() -> None:
    """Run lm_eval as `python -m lm_eval` would. Raises UsageError where it is not installed."""
    if not find_spec("lm_eval"):
        raise UsageError("the package lm_eval is missing", fix="pip install lm-eval")
    import_module("tq3.integrations.transformers")
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
