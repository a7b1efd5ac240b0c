"""In which ways processes may share a packed model: by whole layers, not by parts of a matrix."""

from __future__ import annotations

from typing import Any

from tq3.errors import UsageError

# Sizes of a `DistributedConfig` that have Transformers cut parameters into pieces for each process.
_CUTS = ("tp_size", "ep_size", "fsdp_size", "dp_replicate_size")


def refuse_cuts(config: Any) -> None:
    """Raise UsageError if each process is to hold a part of the matrices.

    config: the model's. Transformers would leave packed layers whole on every process, and add up
    what they all return.
    """
    asked = getattr(config, "distributed_config", None)
    sizes = {name: getattr(asked, name, None) for name in _CUTS}
    cuts = {name: size for name, size in sizes.items() if size is not None and size > 1}
    if cuts:
        raise UsageError(
            "tensor, expert and sharded data parallelism cut matrices, and Transformers "
            "can't cut packed ones",
            found=", ".join(f"{name}={size}" for name, size in cuts.items()),
            fix="share out whole layers with DistributedConfig(pp_size=...) or device_map='auto'; "
            "vLLM has tensor and expert parallelism of packed layers",
        )
