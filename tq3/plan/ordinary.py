"""Whether a checkpoint holds an ordinary model's weights, or what only looks like them."""

from __future__ import annotations

import re

from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint
from tq3.format.weight_files import adapter
from tq3.plan.quantised import refuse_quantised

# LoRA in the words of PEFT, MLX, diffusers and kohya, and PEFT's other methods.
_ADAPTER = re.compile(
    r"(^|\.)(lora_(A|B|a|b|up|down|embedding_[AB]|magnitude_vector)|ia3_l|hada_[wt][12](_[ab])?"
    r"|lokr_([wt][12])(_[ab])?|vera_lambda_[bd]|b?oft_[rRS]|prompt_embeddings|alpha|dora_scale)(\.|$)"
    r"|^lora_(unet|te\d?|transformer)_"
)


def check_ordinary(checkpoint: Checkpoint, fix: str | None = None) -> None:
    """Raise BadInput for quantised weights, adapters, and what lost its weights when it was saved.

    fix: in place of what helps for the quantisation that was found
    """
    _check_there(checkpoint)
    _check_no_adapter(checkpoint)
    refuse_quantised(checkpoint, fix)


def _check_there(checkpoint: Checkpoint) -> None:
    if not checkpoint.tensors:
        raise BadInput(
            "no tensors",
            file=", ".join(checkpoint.weight_files) or None,
            fix="look at how it was saved: there is nothing in it",
        )
    for tensor in checkpoint.tensors:
        if tensor.info.shape == (0,) and tensor.info.name.endswith(".weight"):
            raise BadInput(
                "a weight without elements: saved while DeepSpeed's ZeRO-3 held it in parts",
                file=tensor.file,
                tensor=tensor.info.name,
                found="shape [0]",
                fix="gather the weights (stage3_gather_16bit_weights_on_model_save), "
                "or run zero_to_fp32.py in the training's folder",
            )


def _check_no_adapter(checkpoint: Checkpoint) -> None:
    names = [tensor.info.name for tensor in checkpoint.tensors]
    if all(map(_ADAPTER.search, names)):
        raise adapter(checkpoint.tensors[0].file, f"tensors such as {names[0]!r}")
