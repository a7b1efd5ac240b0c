"""The fuzzers' properties in every run of the suite: on the corpus and on mutations of it."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st
from support.factories import file_bytes, llama_tensors, safetensors_bytes
from support.fuzz import inputs, properties, quantised

from tq3.dequantization.recognition import dequantised
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.header import TensorInfo
from tq3.format.quantised import KINDS
from tq3.format.request import make_recipe

SOUND = {"a.weight": {"dtype": "BF16", "shape": [4, 16], "data_offsets": [0, 128]}}
HEADERS = [inputs.as_input(file_bytes(SOUND, bytes(128))), *inputs.header_seeds()]
FOLDERS = list(inputs.folder_seeds())
QUANTISED = list(quantised.seeds())
WORDS = [
    *(b"{}", b"[]", b"[", b"}", b",", b":", b'"', b"null", b"true", b"-1", b"0", b"1e400", b"NaN"),
    *(b'"dtype"', b'"shape"', b'"F32"', b'"BF16"', b'"U8"', b'"__metadata__"', b"\\ud800", b"\0"),
    *(b".tq_packed", b".tq_norms", b".weight", b"9" * 19, b"9" * 400, b"\n%%config.json\n{}"),
    *(b'"F8_E4M3"', b'"U32"', b'"I64"', b".scales", b".SCB", b".lora_A.weight", b"experts.1."),
    *(b"mlp.experts.0.up_proj.weight", b'"quantization"', b"\n%%2_Dense/model.safetensors\n"),
    *(b'"weight_map"', b'"bits"', b'"tq3"', b'"num_experts"', b'"writer"', b'"group_size"'),
]

# Tensors of a model, sound and odd.
STEMS = ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.experts.1.up_proj", "mtp.fc")
EXPERTS = {
    f"model.layers.0.mlp.experts.{i}.{part}.weight": ("BF16", [128, 256])
    for i in (0, 1)
    for part in ("w1", "w2")
}
NAMES = st.one_of(
    st.sampled_from(
        [
            *(f"{stem}{end}" for stem in STEMS for end in (".weight", ".bias", ".scales", ".SCB")),
            *EXPERTS,
            *("model.embed_tokens.weight", "lm_head.weight", "model.layers.0.mlp.gate.weight"),
            *("model.layers.0.mlp.gate.e_score_correction_bias", "rotary_emb.inv_freq", "x.A_log"),
            *("model.layers.0.mlp.experts.gate_up_proj", "visual.pos_embed.weight", "x.lora_A"),
        ]
    ),
    st.text("abw_.019", max_size=12).map(lambda text: f"{text}.weight"),
)
DTYPES = ("BF16", "F16", "F32", "F32", "BF16", "U8", "I8", "I64", "U32", "F8_E4M3", "BOOL")
SIDES = st.sampled_from([0, 1, 2, 8, 26, 27, 127, 128, 129, 1024, 2048])
SHAPES = st.lists(SIDES, max_size=4)


@st.composite
def mutations(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some bits flipped, pieces moved or lost, and words put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        kind = draw(st.sampled_from(["flip", "word", "lose", "move", "repeat"]))
        if kind == "flip" and start < len(data):
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif kind == "word":
            data[start : min(end, start + 20)] = draw(st.sampled_from(WORDS))
        elif kind == "lose":
            del data[start : min(end, start + 20)]
        elif kind == "move":
            other = draw(st.sampled_from(seeds))
            data[start:end] = other[start:end]
        elif kind == "repeat":
            data[start:start] = data[start : min(end, start + 100)]
    return bytes(data)


def test_the_corpus_has_the_properties():
    for data in HEADERS:
        properties.check_header(inputs.weights(data))
    for data in FOLDERS:
        properties.check_folder(inputs.folder(data))
    for data in QUANTISED:
        quantised.check(quantised.listing(data))


@settings(max_examples=1000)
@given(data=mutations(HEADERS))
def test_a_mutated_header_is_refused_or_read_as_the_safetensors_library_reads_it(data):
    properties.check_header(inputs.weights(data))


@settings(max_examples=1000)
@given(data=mutations(FOLDERS))
def test_a_mutated_folder_is_planned_or_refused_with_our_own_error(data):
    properties.check_folder(inputs.folder(data))


@settings(max_examples=300)
@given(data=mutations(QUANTISED))
def test_any_headers_of_a_quantised_source_are_recognised_or_refused_with_our_own_error(data):
    quantised.check(quantised.listing(data))


def test_among_the_seeds_each_kind_is_recognised():
    found = set()
    for data in QUANTISED:
        with suppress(BadInput):
            tensors = dequantised(quantised.listing(data)).tensors
            found |= {each.pieces.encoding.kind for each in tensors if each.pieces}
    assert found == {*KINDS}


def test_an_input_stands_for_its_file():
    files = [
        safetensors_bytes(llama_tensors(1)),
        file_bytes({}),
        b"",
        bytes(300),
        file_bytes({}, b"x"),
    ]
    for file in chain(files, (inputs.weights(seed) for seed in HEADERS)):
        assert inputs.weights(inputs.as_input(file)) == file


@settings(max_examples=300)
@given(
    listed=st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=8),
    mixture=st.sampled_from([{}, EXPERTS]),
    recipe=st.sampled_from(
        [{}, {"bits": 4}, {"sensitive_bits": 4, "sensitive_patterns": "experts.0."}]
    ),
    keep=st.none() | NAMES,
)
def test_whatever_the_names_types_and_shapes_nothing_is_damaged_by_the_plan(
    listed, mixture, recipe, keep
):
    listed = mixture | listed
    infos = (TensorInfo(name, dtype, tuple(shape)) for name, (dtype, shape) in listed.items())
    tensors = tuple(Located(info, "model.safetensors", 0) for info in infos)
    checkpoint = Checkpoint(tensors, {"model.safetensors": "as it was"}, {})
    chosen = {"keep": keep} if keep in listed else {}
    properties.check_fates(checkpoint, make_recipe(**recipe, **chosen))
