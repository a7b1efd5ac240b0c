"""lm_eval as the host. `make harness` runs this; elsewhere it is missing, nothing is collected."""

from __future__ import annotations

from importlib.util import find_spec

if not find_spec("lm_eval"):
    collect_ignore_glob = ["test_*.py"]
