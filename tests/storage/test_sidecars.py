"""What travels along with the weights, and what stays behind and why."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq3.errors import UsageError
from tq3.storage.selection import Selection
from tq3.storage.sidecars import choose_sidecars, is_loaded_by_hosts, is_weight_file

ACCOUNTED = ("model.safetensors", "model.safetensors.index.json", "tq_config.json")

COPIED = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "merges.txt",
    "vocab.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "modeling_custom.py",
    "LICENSE",
    "README.md",
    "1_Pooling/config.json",
    "additional/chat_templates/tool.jinja",
    "assets/picture.png",
    "binary.txt",
    "documents.index.json",
    "tokenizer.index.fp16.json",
    "gitignore.md",
    "cache_utils.py",
    # Parts that a host asks for: modules, tokenizers of sounds, voices, adapters of a modality.
    "2_Dense/model.safetensors",
    "2_Dense/pytorch_model.bin",
    "1_Router/query_0_Dense/model.safetensors",
    "speech_tokenizer/model.safetensors",
    "assets/token2wav/campplus.onnx",
    "assets/onnx/vad.onnx",
    "vision-lora/adapter_config.json",
    "vision-lora/adapter_model.safetensors",
    "original_voices/a.pt",
    "fp16/notes.txt",
    "spk_dict.pt",
    "speakers.npz",
    "vad.onnx",
    "label_encoder.pkl",
]

LEFT_OUT = {
    "pytorch_model.bin": "weights",
    "pytorch_model.fp16.bin": "weights",
    "model.fp16.safetensors": "weights",
    "model.safetensors.index.fp16.json": "weights",
    "model.pt": "weights",
    "weights.00.npz": "weights",
    "decoder_model_merged.onnx": "weights",
    "model.onnx_data_1": "weights",
    "openvino_model.bin": "weights",
    "consolidated.safetensors": "weights",
    "consolidated.safetensors.index.json": "weights",
    "diffusion_pytorch_model-00001-of-00002.safetensors": "weights",
    "llama-7b.ckpt": "weights",
    "pytorch_model-00001-of-00002.bin": "weights",
    "pytorch_model.bin.index.json": "weights",
    "tf_model.h5": "weights",
    "flax_model.msgpack": "weights",
    "rust_model.ot": "weights",
    "consolidated.00.pth": "weights",
    "model.Q4_K_M.gguf": "weights",
    "foreign.safetensors": "weights",
    "two\nlines.safetensors": "not part of this checkpoint",
    ".safetensors": "not part of this checkpoint",
    ".gguf": "other weights of this model",
    "quantized/model.q4.gguf": "other weights of this model",
    "two\nlines.gguf": "weights",
    "model-\n.pt": "weights",
    "Model.GGUF": "weights",
    "MODEL.SAFETENSORS": "other weights",
    "Model.Safetensors.Index.JSON": "other weights",
    "ONNX/Model.onnx": "weights",
    "onnx_\n/model.onnx": "weights",
    "adapter_config.json": "adapter",
    "adapter_model.safetensors": "adapter",
    "adapter_model-00001-of-00002.bin": "adapter",
    "training_args.bin": "training",
    "optimizer.pt": "training",
    "rng_state_3.pth": "training",
    "mp_rank_00_model_states.pt": "training",
    "checkpoint-500/optimizer.pt": "training",
    "global_step12/mp_rank_00_model_states.pt": "training",
    "onnx/model.onnx": "weights",
    "onnx_int8/model.onnx": "weights",
    "original/consolidated.00.pth": "weights",
    "metal/model.bin": "weights",
    "model.mlpackage/Data/weight.bin": "weights",
    ".gitattributes": "git",
    ".gitignore": "git",
    ".git/config": "git",
    "sub/.git/HEAD": "git",
    ".cache/huggingface/download/config.json.metadata": "cache",
    "__pycache__/modeling.cpython-311.pyc": "cache",
    "code/__pycache__/x.pyc": "cache",
    ".tq3.part/config.json.part": "draft",
    "elsewhere/": "link to a folder",
    "sub/elsewhere/": "link to a folder",
}


@pytest.mark.parametrize("name", COPIED)
def test_what_is_not_weights_is_copied(name):
    assert choose_sidecars([name], ACCOUNTED).copied == {name: name}


@pytest.mark.parametrize(("name", "why"), LEFT_OUT.items())
def test_other_weights_git_and_caches_stay_behind_with_a_reason(name, why):
    found = choose_sidecars([name], ACCOUNTED)
    assert found.copied == {}
    assert why in found.left_out[name]


def test_the_callers_own_files_are_neither_copied_nor_left_out():
    found = choose_sidecars([*ACCOUNTED, "a.txt"], ACCOUNTED)
    assert (found.copied, found.left_out) == ({"a.txt": "a.txt"}, {})


def test_a_folder_of_other_weights_stays_behind_whole():
    names = ["onnx/model.onnx", "onnx/config.json", "onnx/deep/er.txt", "docs/config.json"]
    found = choose_sidecars(names, ACCOUNTED)
    assert found.copied == {"docs/config.json": "docs/config.json"}
    assert found.left_out["onnx/config.json"] == "in a folder of other weights of this model"
    assert found.left_out["onnx/deep/er.txt"] == "in a folder of other weights of this model"


def test_weights_at_the_top_do_not_take_their_neighbours_along():
    found = choose_sidecars(["pytorch_model.bin", "config.json", "a/b.json"], ACCOUNTED)
    assert set(found.copied) == {"config.json", "a/b.json"}


def test_shards_in_a_folder_do_not_leave_their_neighbours_behind():
    found = choose_sidecars(["parts/1.safetensors", "parts/notes.txt"], ["parts/1.safetensors"])
    assert set(found.copied) == {"parts/notes.txt"}


def test_a_renamed_file_is_copied_under_its_new_name():
    renamed = {"README.md": "README.source.md"}
    found = choose_sidecars(["LICENSE", "README.md"], (), renamed)
    assert found.copied == {"LICENSE": "LICENSE", "README.md": "README.source.md"}


def test_what_has_the_new_name_already_stays_behind_with_the_reason():
    names = ["README.md", "README.source.md"]
    found = choose_sidecars(names, (), {"README.source.md": "README.md"})
    assert found.copied == {"README.source.md": "README.md"}
    assert found.left_out == {"README.md": "README.source.md takes its name"}


def test_without_the_renamed_file_its_new_name_is_free():
    found = choose_sidecars(["README.source.md"], (), {"README.md": "README.source.md"})
    assert found.copied == {"README.source.md": "README.source.md"}


def test_what_a_manifest_lists_travels_whatever_it_is():
    names = ["adapter_config.json", "adapter_model.bin", "onnx/model.onnx", "model.gguf"]
    found = choose_sidecars(names, (), listed=[*names[:3], "gone.txt"])
    assert (set(found.copied), set(found.left_out)) == ({*names[:3]}, {"model.gguf"})


@pytest.mark.parametrize(
    ("also", "taken"),
    [
        ("onnx", {"onnx/model.onnx", "onnx/a/config.json"}),
        ("onnx/", {"onnx/model.onnx", "onnx/a/config.json"}),
        ("*.onnx", {"onnx/model.onnx"}),
        ("onnx/?/*", {"onnx/a/config.json"}),
        ("model.gguf", {"model.gguf"}),
        (".gitattributes", {".gitattributes"}),
    ],
)
def test_what_is_asked_for_travels_too(also, taken):
    names = [".gitattributes", "model.gguf", "onnx/a/config.json", "onnx/model.onnx"]
    assert choose_sidecars(names, (), selection=Selection.of(also, None)).copied.keys() == taken


def test_without_leaves_behind_even_what_also_takes_and_never_config_json():
    names = ["config.json", "onnx/a.bin", "onnx/model.onnx", "tokenizer.json"]
    only_weights = Selection.of("onnx", ["*.bin", "tokenizer*"])
    assert set(choose_sidecars(names, (), selection=only_weights).copied) == {
        *("config.json", "onnx/model.onnx"),
    }
    found = choose_sidecars(names, (), selection=Selection.of((), "*"))
    assert set(found.copied) == {"config.json"}
    assert set(found.left_out.values()) == {"asked for by --without"}


@pytest.mark.parametrize("option", ["also", "without"])
@pytest.mark.parametrize("glob", ["onxx/*", "model.safetensors", "linked", ".tq3.part/*", ""])
def test_a_glob_that_matches_nothing_is_a_slip_of_the_pen(option, glob):
    names = ["model.safetensors", "onnx/model.onnx", "linked/", ".tq3.part/x.part"]
    with pytest.raises(UsageError, match=re.escape(f"--{option} {glob!r} matches")) as caught:
        choose_sidecars(names, ACCOUNTED, selection=Selection(**{option: (glob,)}))
    assert caught.value.found == "files such as 'onnx/model.onnx'"


def test_config_json_cannot_be_left_out():
    with pytest.raises(UsageError, match="--without 'config.json' matches no file"):
        choose_sidecars(["config.json"], (), selection=Selection.of((), "config.json"))


ADAPTER = ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize(
    ("names", "selection", "copied"),
    [
        (ADAPTER, Selection(), set()),
        (ADAPTER, Selection.of("adapter_*", ()), {*ADAPTER}),
        (ADAPTER, Selection.of("adapter_*", "adapter_config.json"), {ADAPTER[1]}),
        (ADAPTER, Selection.of("*", "adapter_*"), set()),
    ],
)
def test_an_adapters_config_goes_with_its_weights_or_not_at_all(names, selection, copied):
    found = choose_sidecars(names, (), selection=selection)
    assert found.copied.keys() == copied
    assert {*found.copied, *found.left_out} == {*names}


@pytest.mark.parametrize(
    ("names", "selection"),
    [
        (ADAPTER, Selection.of("adapter_config.json", ())),
        (ADAPTER, Selection.of("adapter_*", "*.safetensors")),
        (ADAPTER[:1], Selection.of("*", ())),
    ],
)
def test_an_adapters_config_that_is_asked_for_without_its_weights_is_refused(names, selection):
    with pytest.raises(UsageError, match="without the adapter's weights") as caught:
        choose_sidecars(names, (), selection=selection)
    assert caught.value.file == "adapter_config.json"
    assert "--without adapter_config.json" in str(caught.value.fix)


def test_a_listed_adapters_config_whose_weights_are_gone_stays_behind():
    found = choose_sidecars(ADAPTER[:1], (), listed=ADAPTER)
    assert found.doubtful.keys() == {*ADAPTER[:1]}


def test_an_adapters_config_that_the_user_leaves_behind_is_nothing_to_be_doubted():
    found = choose_sidecars(ADAPTER[:1], (), selection=Selection.of((), "adapter_*"))
    assert found.left_out == {"adapter_config.json": "asked for by --without"}
    assert found.doubtful == {}


def test_what_a_host_may_need_and_did_not_get_is_told_apart_from_mere_copies():
    names = ["adapter_model.bin", "model.gguf", "onnx/model.onnx", "value_head.safetensors"]
    found = choose_sidecars([*names, "2_Dense/model.safetensors"], ())
    assert set(found.doubtful) == {"adapter_model.bin", "value_head.safetensors"}
    assert found.weights == ["2_Dense/model.safetensors"]


@pytest.mark.parametrize("name", ["a.safetensors", "pytorch_model.bin", "x.gguf", ADAPTER[0]])
def test_hosts_load_by_suffix_and_by_the_name_of_a_model(name):
    assert is_loaded_by_hosts(name)
    assert not is_loaded_by_hosts(f"2_Dense/{name}")


@pytest.mark.parametrize("name", ["spk_dict.pt", "optimizer.pt", "training_args.bin", "a.json"])
def test_no_host_loads_voices_or_the_state_of_a_training_as_weights(name):
    assert not is_loaded_by_hosts(name)


def test_indices_are_weights_and_other_json_is_none():
    assert is_weight_file("a/pytorch_model.bin.index.json")
    assert not is_weight_file("a/index.json")
    assert not is_weight_file("model.safetensors/notes.txt")


PARTS = st.sampled_from(
    ["a", "b.json", ".git", "x.bin", "__pycache__", "w.safetensors", "onnx", *ADAPTER]
)


@given(names=st.sets(st.lists(PARTS, min_size=1, max_size=3).map("/".join), max_size=12))
def test_every_file_is_copied_or_left_out_and_never_both(names):
    found = choose_sidecars(sorted(names), ())
    assert set(found.copied) | set(found.left_out) == names
    assert not set(found.copied) & set(found.left_out)
