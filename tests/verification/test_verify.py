"""Every check finds what it is for, nothing else, and all there is."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.factories import Tensor
from support.pipelines.beside import checks
from support.pipelines.spoiling import (
    FIRST,
    INDEX,
    SECOND,
    SHARD,
    change_json,
    change_tensors,
    changed_bytes,
    cut,
    flip,
    flip_in_header,
    seal,
    set_key,
)

import tq3
from tq3.verification.checks import CHECKS, Fault

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
EXPERTS = "layers.0.mlp.experts.gate_up_proj"

CONFIG = "config.json"


@pytest.mark.parametrize("sealed", [False, True], ids=["no manifest", "manifest"])
@pytest.mark.parametrize("name", ["one", "two", "kinds"])
def test_what_compress_writes_is_sound(copy, name, sealed):
    folder = seal(copy(name)) if sealed else copy(name)
    result = tq3.verify(folder)
    assert result.ok
    assert result.faults == ()
    assert result.checksums == sealed
    assert ("so no checksums" in "".join(result.notices)) == (not sealed)
    if sealed:
        files = (path for path in folder.rglob("*") if path.name != "tq3_manifest.json")
        assert result.bytes_read == sum(path.stat().st_size for path in files)


def unlink(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def drop(*names: str) -> Callable[[Path], None]:
    """Take tensors out of the only shard."""

    def spoil(folder: Path) -> None:
        change_tensors(folder, lambda tensors: [tensors.pop(name) for name in names])

    return spoil


def put(name: str, make: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[Path], None]:
    """Put a tensor into the only shard, or another one in its place."""

    def spoil(folder: Path) -> None:
        change_tensors(folder, lambda tensors: tensors.update({name: make(tensors)}))

    return spoil


def bad_norm(value: float) -> Callable[[Path], None]:
    name = UP + ".tq_norms"
    return put(name, lambda tensors: changed_bytes(tensors[name], 7, value, "<f4"))


def twice(folder: Path) -> None:
    """The second shard once more, under the first one's name; the index agrees with neither."""
    shutil.copy(folder / SECOND, folder / FIRST)


def by_tq3(folder: Path) -> None:
    set_key("tq_config.json", "tq3.writer", "tq3 0.1.0")(folder)


def unfinished(folder: Path) -> None:
    (folder / ".tq3.part").mkdir()
    (folder / "tq_config.json").unlink()


def longer(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(" ")

    return spoil


def pipe(folder: Path) -> None:
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)


def broken_link(folder: Path) -> None:
    (folder / SECOND).unlink()
    (folder / SECOND).symlink_to(folder / "nowhere")


def index_without(name: str) -> Callable[[Path], None]:
    return lambda folder: change_json(
        folder, INDEX, lambda index: index["weight_map"].__delitem__(name)
    )


ONLY_BITS = "(found {'bits': 4}, expected {'bits': 3})"
# identifier, folder, whether it has a manifest of before, spoiler, part of the message.
PROVOKED = {
    "TQ101": ("one", False, unfinished, "found .tq3.part and no tq_config.json"),
    "TQ102": ("one", False, unlink("tq_config.json"), "not a TQ3 checkpoint"),
    "TQ103": ("one", False, write("tq_config.json", "{"), "not JSON"),
    "TQ103 recipe": (
        "one",
        False,
        set_key("tq_config.json", "tq3.recipe.scale", "best"),
        "scale is 'best'",
    ),
    "TQ103 format": ("one", False, set_key("tq_config.json", "format", "tq9"), "found tq9"),
    "TQ104": ("one", False, write(CONFIG, "[]"), "not a JSON object"),
    "TQ105": ("one", False, set_key(CONFIG, "quantization_config.bits", 4), ONLY_BITS),
    "TQ106": ("two", False, write(INDEX, '{"weight_map": []}'), "not an object with entries"),
    "TQ106 name": ("two", False, set_key(INDEX, "weight_map.x", 5), "not the name of a file"),
    "TQ106 none": ("two", False, unlink(INDEX), "no index says which belong together"),
    "TQ107": ("one", False, unlink(SHARD), "no safetensors weights"),
    "TQ107 shard": ("two", False, unlink(FIRST), "the index names it"),
    "TQ108": ("two", False, write("old.safetensors", ""), "not part of this checkpoint"),
    "TQ108 bin": ("one", False, write("pytorch_model.bin", ""), "not part of this"),
    "TQ108 adapter": ("one", False, write("adapter_config.json", "{}"), "not part of this"),
    "TQ109": ("two", False, broken_link, "a link whose file is missing"),
    "TQ201": ("two", False, flip_in_header, "not JSON"),
    "TQ201 size": ("one", False, longer(SHARD), "do not fill the file"),
    "TQ202": ("two", False, twice, f"also in {FIRST}"),
    "TQ203": ("two", False, set_key(INDEX, "weight_map.ghost", FIRST), "found no such tensor"),
    "TQ204": ("two", False, index_without(NORM), "not in the index"),
    "TQ205": ("one", False, drop(UP + ".tq_norms"), ".tq_norms is missing"),
    "TQ205 codes": ("one", False, drop(UP + ".tq_packed"), ".tq_packed is missing"),
    "TQ206": ("one", False, put(UP, lambda tensors: tensors[NORM]), "stored twice"),
    "TQ207": ("one", False, set_key("tq_config.json", "group_size", 64), "contradict each other"),
    "TQ207 experts": (
        "kinds",
        False,
        set_key("tq_config.json", "tq3.shapes", {EXPERTS: [3, 5, 256]}),
        "found codes U8 [24, 48], norms F32 [12, 2]",
    ),
    "TQ208": ("one", False, set_key("tq_config.json", "compressed_layers", 5), "found 6 tensors"),
    "TQ209": (
        "one",
        False,
        set_key("tq_config.json", "orig_in_dims", {"ghost": 5}),
        "names a tensor",
    ),
    "TQ209 kept": (
        "one",
        False,
        set_key("tq_config.json", "tq3.kept_source_dtype", {UP: "because"}),
        "kept_source_dtype names a tensor",
    ),
    "TQ210": ("one", False, set_key("tq_config.json", "bits", 4), "found 3 bits, expected 4"),
    "TQ301": ("one", False, bad_norm(float("nan")), "row 7, group 0 (found nan, expected finite)"),
    "TQ301 inf": ("one", False, bad_norm(float("-inf")), "found -inf"),
    "TQ302": ("one", False, bad_norm(-0.5), "row 7, group 0 (found -0.5, expected at least 0)"),
    "TQ401": ("one", True, longer("tq3_manifest.json"), "its last line does not fit"),
    "TQ402": ("one", True, unlink("tokenizer.json"), "missing"),
    "TQ402 manifest": ("one", False, by_tq3, "tq3 always writes it"),
    "TQ403": ("one", True, longer("tokenizer.json"), "found 3 bytes, expected 2"),
    "TQ404": ("one", True, lambda folder: flip(folder / SHARD, 8 * 50_000), "bytes 0 to"),
    "TQ405": ("one", True, write("model.safetensors.index.json", "{}"), "nothing is known"),
}
# What can't be without something else being wrong too.
COMPANIONS = {
    "TQ202": {"TQ203", "TQ208"},
    "TQ205 codes": {"TQ208"},
    "TQ207": {"TQ105"},
    "TQ210": {"TQ105"},
    "TQ405": {"TQ106"},
}


@pytest.mark.parametrize("case", PROVOKED)
def test_each_check_finds_what_it_is_for_and_little_else(copy, case):
    name, sealed, spoil, words = PROVOKED[case]
    folder = seal(copy(name)) if sealed else copy(name)
    spoil(folder)
    result = tq3.verify(folder)
    check = case.split()[0]
    found = [fault for fault in result.faults if fault.check == check]
    assert any(words in fault.text for fault in found), result.faults
    assert set(checks(result)) - {check} <= COMPANIONS.get(case, set())
    assert not result.ok


def test_every_check_is_provoked_here_or_beside_the_source():
    tests = ("test_verify_source.py", "test_kept_values.py")
    texts = (Path(__file__).with_name(name).read_text() for name in tests)
    beside = set(re.findall(r'"(TQ5\d\d)"', "".join(texts)))
    assert {case.split()[0] for case in PROVOKED} | beside == set(CHECKS)


def test_every_check_is_documented_and_nothing_else_is():
    text = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()
    lines = re.findall(r"^\| (TQ\d{3}) \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    assert {check: what for check, what, _ in lines} == CHECKS
    for check, _, what_to_do in lines:
        assert what_to_do.split(". ")[0] == Fault(check, "").fix, check


TOLD_ONCE = {
    "no tq_config.json": (unlink("tq_config.json"), "TQ102", "not a TQ3 checkpoint"),
    "no shard": (unlink(FIRST), "TQ107", "the index names it"),
    "no index": (unlink(INDEX), "TQ106", "no index says"),
    "a broken link": (broken_link, "TQ109", "a link whose file is missing"),
    "a pipe": (pipe, "TQ109", "not a regular file (found a pipe)"),
    "cut short": (cut(-1), "TQ403", "(found {0} bytes, expected {1})"),
    "cut in its header": (cut(9), "TQ403", "(found {0} bytes, expected {1})"),
    "longer": (longer(SECOND), "TQ403", "(found {0} bytes, expected {1})"),
}


@pytest.mark.parametrize("case", TOLD_ONCE)
def test_a_fault_that_two_checks_see_is_told_once(copy, case):
    spoil, check, words = TOLD_ONCE[case]
    folder = seal(copy("two"))
    n_bytes = (folder / SECOND).stat().st_size
    spoil(folder)
    (fault,) = tq3.verify(folder).faults
    assert (fault.check, fault.count) == (check, 1)
    if "{0}" in words:
        words = words.format((folder / SECOND).stat().st_size, n_bytes)
    assert words in fault.text
