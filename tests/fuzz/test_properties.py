"""The fuzzers' properties in every run of the suite: on the corpus and on mutations of it."""

from __future__ import annotations

from itertools import chain

import inputs
import properties
from factories import file_bytes, llama_tensors, safetensors_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

SOUND = {"a.weight": {"dtype": "BF16", "shape": [4, 16], "data_offsets": [0, 128]}}
HEADERS = [inputs.as_input(file_bytes(SOUND, bytes(128))), *inputs.header_seeds()]
FOLDERS = list(inputs.folder_seeds())
WORDS = [
    *(b"{}", b"[]", b"[", b"}", b",", b":", b'"', b"null", b"true", b"-1", b"0", b"1e400", b"NaN"),
    *(b'"dtype"', b'"shape"', b'"F32"', b'"BF16"', b'"U8"', b'"__metadata__"', b"\\ud800", b"\0"),
    *(b".tq_packed", b".tq_norms", b".weight", b"9" * 19, b"9" * 400, b"\n%%config.json\n{}"),
    *(b'"weight_map"', b'"bits"', b'"tq3"', b'"num_experts"', b'"writer"', b'"group_size"'),
]


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


@settings(max_examples=1000)
@given(data=mutations(HEADERS))
def test_a_mutated_header_is_refused_or_read_as_the_safetensors_library_reads_it(data):
    properties.check_header(inputs.weights(data))


@settings(max_examples=1000)
@given(data=mutations(FOLDERS))
def test_a_mutated_folder_is_planned_or_refused_with_our_own_error(data):
    properties.check_folder(inputs.folder(data))


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
