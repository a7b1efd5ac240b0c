"""`finish` names the parts that can't be joined, and goes on from where it was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.factories import contents, mixed_tensors, tiny_checkpoint, visible
from support.pipelines.divided import drafts_of, run_parts
from support.pipelines.interrupting import Stopped, counted_blocks, number_of_calls
from support.pipelines.spoiling import cut, flip

import tq3
from tq3.errors import BadInput, UsageError
from tq3.format.parts import Part
from tq3.storage.drafts import DraftFolder
from tq3.storage.journal import Journal
from tq3.storage.parts import part_folder
from tq3.storage.target import TargetFolder

OPTIONS: dict[str, Any] = {"max_shard_size": 8000, "workers": 1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source, what one run makes of it, and three parts."""
    path = tmp_path_factory.mktemp("parts")
    source = tiny_checkpoint(path / "in", mixed_tensors(), shards=3)
    (source / "tokenizer.json").write_text("{}")
    tq3.compress(source, path / "whole", **OPTIONS)
    run_parts(source, path / "parts", 3, **OPTIONS)
    return path


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "parts", tmp_path / "out"))


def folder_of(out: Path, number: int) -> Path:
    return part_folder(out, Part(number, 3))


def of_another_recipe(made: Path, out: Path) -> None:
    shutil.rmtree(folder_of(out, 2))
    with pytest.raises(UsageError, match=r"part 1/3 in the target is of another run"):
        run_parts(made / "in", out, 3, [2], bits=4, **OPTIONS)
    run_parts(made / "in", out, 3, [2], bits=4, overwrite=True, **OPTIONS)


def of_an_older_version(made: Path, out: Path) -> None:
    shutil.rmtree(folder_of(out, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tq3.pipelines.compress.Compression.writer", "tq3 0.1")
        run_parts(made / "in", out, 3, [2], **OPTIONS)


def of_another_source(made: Path, out: Path) -> None:
    shutil.rmtree(folder_of(out, 2))
    source = Path(shutil.copytree(made / "in", out.parent / "in", copy_function=shutil.copy))
    run_parts(source, out, 3, [2], overwrite=True, **OPTIONS)


def interrupted(_: Path, out: Path) -> None:
    (folder_of(out, 2) / "manifest").unlink()


FAULTS = {
    "part 2: missing": lambda _, out: shutil.rmtree(folder_of(out, 2)),
    "part 2: not complete": interrupted,
    "part 2: of another run .--bits 4, the others --bits 3": of_another_recipe,
    "part 2: of another run .writer tq3 0.1, the others tq3": of_an_older_version,
    "part 2: of another run .another source: model-00001-of-00003.safetensors differs": (
        of_another_source
    ),
    r"part 2: damaged: model-\d+.safetensors.part is gone": lambda _, out: drafts_of(out)[
        3
    ].unlink(),
    r"part 2: damaged: model-\d+.safetensors.part has other bytes": lambda _, out: flip(
        drafts_of(out)[3], 8 * 5000
    ),
    r"part 2: damaged: model-\d+.safetensors.part has [\d,]+ bytes, not": lambda _, out: cut(
        -1, drafts_of(out)[3].name
    )(drafts_of(out)[3].parent),
    "part 2: its manifest is damaged": lambda _, out: flip(folder_of(out, 2) / "manifest", 800),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_part_that_can_not_be_joined_is_named_and_its_run_mends_that(made, out, fault):
    assert drafts_of(out)[3].parent == folder_of(out, 2)
    FAULTS[fault](made, out)
    before = contents(out)
    with pytest.raises(BadInput, match=rf"1 of 3 parts not ready to be joined .found {fault}"):
        tq3.finish(out)
    assert contents(out) == before
    shutil.rmtree(folder_of(out, 2)) if "another run" in fault else None
    run_parts(made / "in", out, 3, [2], **OPTIONS)
    tq3.finish(out)
    assert contents(out) == contents(made / "whole")


def test_all_parts_that_are_missing_are_named(made, tmp_path):
    run_parts(made / "in", tmp_path / "out", 7, [2, 6], **OPTIONS)
    told = r"5 of 7 parts .*parts 1, 3 to 5 and 7: missing.*\(--part 1/7, .*5/7, and so on\)"
    with pytest.raises(BadInput, match=told):
        tq3.finish(tmp_path / "out")
    standing = tq3.parts(tmp_path / "out").to_dict()
    assert list(standing["whole"]) == ["2", "6"]
    assert list(standing["faults"]) == ["1", "3", "4", "5", "7"]
    run_parts(made / "in", tmp_path / "out", 7, [1, 3, 4], **OPTIONS)
    with pytest.raises(BadInput, match=r"\(--part 5/7, --part 7/7\), then tq3 finish"):
        tq3.finish(tmp_path / "out")


def test_a_draft_that_was_cut_is_seen_without_reading_it(made, out):
    assert tq3.parts(out).faults == {}
    draft = drafts_of(out)[3]
    n_bytes = draft.stat().st_size
    cut(-100, draft.name)(draft.parent)
    expected = {2: f"damaged: {draft.name} has {n_bytes - 100:,} bytes, not {n_bytes:,}"}
    assert tq3.parts(out).faults == expected
    draft.unlink()
    assert tq3.parts(out).faults == {2: f"damaged: {draft.name} is gone"}


def test_whoever_gives_a_part_other_options_hears_that_overwriting_is_for_every_part(made, out):
    every = "or run every part with --overwrite to start anew"
    with pytest.raises(UsageError, match=f"--bits 3 became --bits 4.*{every}"):
        run_parts(made / "in", out, 3, [2], bits=4, **OPTIONS)
    shutil.rmtree(folder_of(out, 2))
    with pytest.raises(UsageError, match=f"--bits 3 became --bits 4.*{every}"):
        run_parts(made / "in", out, 3, [2], bits=4, **OPTIONS)


def test_without_parts_there_is_nothing_to_finish(made, out, tmp_path):
    tq3.finish(out)
    for folder in (out, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no parts of a divided run are here"):
            tq3.finish(folder)
        with pytest.raises(UsageError, match="no parts"):
            tq3.parts(folder)
    assert contents(out) == contents(made / "whole")


def test_a_source_that_moved_is_named_anew_and_another_one_is_refused(made, out, tmp_path):
    source = Path(shutil.copytree(made / "in", tmp_path / "moved"))  # with its times
    manifests = [folder_of(out, n) / "manifest" for n in (1, 2, 3)]
    assert all(str(made / "in").encode() in path.read_bytes() for path in manifests)
    shutil.move(made / "in", made / "elsewhere")
    try:
        with pytest.raises(BadInput, match=r"the source of the parts.*--source"):
            tq3.finish(out)
    finally:
        shutil.move(made / "elsewhere", made / "in")
    other = tiny_checkpoint(tmp_path / "other", mixed_tensors(), shards=3)
    with pytest.raises(UsageError, match="changed since"):
        tq3.finish(out, source=other)
    tq3.finish(out, source=source)
    found, expected = contents(out), contents(made / "whole")
    names = [name for name in expected if name not in ("tq_config.json", "tq3_manifest.json")]
    assert [found[name] for name in names] == [expected[name] for name in names]
    assert json.loads(found["tq_config.json"])["original_model"] == "moved"


STEPS = {"adopt": TargetFolder, "_take_name": TargetFolder, "join": Journal, "remove": DraftFolder}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("before", [True, False])
def test_what_ends_while_it_joins_goes_on(made, out, tmp_path, name, before):
    parts = Path(shutil.copytree(out, tmp_path / "copy"))
    calls = number_of_calls(lambda: tq3.finish(parts), STEPS[name], name)
    for call in sorted({0, calls // 2} & {*range(calls)}):
        shutil.rmtree(out)
        shutil.copytree(made / "parts", out)
        with ended_at(name, call, before), pytest.raises(Stopped):
            tq3.finish(out)
        if visible(out) == contents(made / "whole"):
            continue  # it was about to say so
        with counted_blocks() as again:
            tq3.finish(out)
        assert again == []
        assert contents(out) == contents(made / "whole"), call


def ended_at(name: str, call: int, before: bool) -> Any:
    """Ends a run as a crash would: nothing is put in order behind it."""
    patch, calls, method = pytest.MonkeyPatch(), [0], getattr(STEPS[name], name)

    def ending(*arguments: object, **options: object) -> object:
        calls[0] += 1
        if calls[0] - 1 == call and before:
            raise Stopped
        result = method(*arguments, **options)
        if calls[0] - 1 == call:
            raise Stopped
        return result

    patch.setattr(STEPS[name], name, ending)
    patch.setattr(TargetFolder, "_remove_useless", lambda _: None)
    return Undone(patch)


class Undone:
    """A patch as a context."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


def test_what_was_damaged_between_two_calls_is_encoded_again(made, out):
    with ended_at("adopt", 5, before=False), pytest.raises(Stopped):
        tq3.finish(out)
    with pytest.raises(UsageError, match="parts that are being joined .*by `tq3 finish`"):
        run_parts(made / "in", out, 3, [2], **OPTIONS)
    assert tq3.parts(out).faults == {}
    flip(drafts_of(out)[-1], 8 * 3000)
    flip(out / ".tq3.part" / "model-00002.safetensors.part", 8 * 3000)
    tq3.finish(out)
    assert contents(out) == contents(made / "whole")
