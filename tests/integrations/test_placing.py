"""Which parameter a compressed tensor fills, where a host renames and joins tensors."""

from __future__ import annotations

import pytest
import transformers
from packed_models import GPT2, changed, load
from tiny_models import BY_NAME
from transformers.core_model_loading import Transpose, WeightConverter, WeightRenaming

from tq3.errors import BadInput
from tq3.integrations.transformers import placing

LLAMA = BY_NAME["llama"]


def test_a_tensor_that_the_host_would_rearrange_is_refused_by_name(llama, monkeypatch):
    converter = WeightConverter("up_proj.weight", "up_proj.weight", operations=[Transpose()])
    monkeypatch.setattr(placing, "get_model_conversion_mapping", lambda _: [converter])
    with pytest.raises(BadInput, match=r"0.mlp.up_proj.weight'.*rearranges.*Transpose.*--keep"):
        load(LLAMA, llama.compressed)


def test_a_renaming_that_misses_codes_and_norms_is_refused(llama, tmp_path, monkeypatch):
    """The host would only warn, and leave the layer as it was allocated."""

    def rename(tensors):
        for name in [name for name in tensors if ".0.mlp.up_proj." in name]:
            tensors[name.replace("up_proj", "up")] = tensors.pop(name)

    renaming = WeightRenaming(r"\.up\.weight$", ".up_proj.weight")
    monkeypatch.setattr(placing, "get_model_conversion_mapping", lambda _: [renaming])
    with pytest.raises(
        BadInput, match=r"'model.layers.0.mlp.up_proj.weight.tq_norms'.*would not load it.*tested"
    ):
        load(LLAMA, changed(llama.compressed, tmp_path / "renamed", rename))


def test_a_model_of_another_architecture_is_refused(llama):
    with pytest.raises(BadInput, match="no compressed tensor belongs to a GPT2LMHeadModel"):
        transformers.GPT2LMHeadModel.from_pretrained(
            llama.compressed,
            config=GPT2.config,
            quantization_config=transformers.AutoConfig.from_pretrained(
                llama.compressed
            ).quantization_config,
        )
