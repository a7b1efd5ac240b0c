"""A run that was interrupted while files took their names is completed by the same command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.factories import contents, mixed_tensors, tiny_checkpoint, too_large
from support.pipelines.interrupting import SHARD_BYTES, counted_blocks, number_of_calls

import tq3
from tq3.errors import UsageError
from tq3.storage.drafts import DraftFolder
from tq3.storage.journal import Journal
from tq3.storage.target import TargetFolder

# Every step of the publishing, by its method; each is interrupted before it and after it.
STEPS = {
    "_take_name": TargetFolder,
    "_flush_folders": TargetFolder,
    "_remove_older": TargetFolder,
    "_write_draft": TargetFolder,
    "publishing": Journal,
    "remove": DraftFolder,
}


@pytest.fixture
def source(tmp_path) -> Path:
    path = tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), 1))
    (path / "tokenizer.json").write_text("{}")
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "notes").write_text("n")
    compress(tmp_path, "tq3")
    return path


def compress(path: Path, out: str, **options: object) -> tq3.Report:
    """The run that is interrupted."""
    options = {"max_shard_size": SHARD_BYTES, **options}
    return tq3.compress(path / "in", path / out, **options)  # type: ignore[arg-type]


def restore(path: Path, out: str, **options: object) -> tq3.Report:
    """The other one."""
    return tq3.restore(path / "tq3", path / out, max_shard_size=20_000, **options)  # type: ignore[arg-type]


def older(out: Path, whole: Path) -> dict[str, bytes]:
    """A checkpoint of the same names, sizes and headers, and of other values."""
    out.mkdir()
    for name, data in contents(whole).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        flipped = data[:-1] + bytes([data[-1] ^ 1]) if name.endswith(".safetensors") else data
        (out / name).write_bytes(flipped)
    return contents(out)


@contextmanager
def interrupted_at(name: str, call: int, *, before: bool) -> Iterator[None]:
    """Ctrl-C in this call of a method, before its work or after it."""
    calls, method = iter(range(call)), getattr(STEPS[name], name)

    def step(*arguments: object, **options: object) -> object:
        now = next(calls, None) is None
        if now and before:
            raise KeyboardInterrupt
        result = method(*arguments, **options)
        if now:
            raise KeyboardInterrupt
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STEPS[name], name, step)
        with pytest.raises(KeyboardInterrupt):
            yield


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("run", [compress, restore])
def test_an_interruption_at_any_step_of_the_publishing_is_made_good(
    source, tmp_path, run, overwrite, name
):
    n_calls = number_of_calls(lambda: run(tmp_path, "whole"), STEPS[name], name)
    whole, marker = contents(tmp_path / "whole"), "tq_config.json"
    assert n_calls >= 1
    for call in range(n_calls):
        for before in (True, False):
            out = f"{call} {before}"
            old = older(tmp_path / out, tmp_path / "whole") if overwrite else whole
            with interrupted_at(name, call, before=before):
                run(tmp_path, out, overwrite=overwrite)
            seen = contents(tmp_path / out)
            if run is compress and marker in seen:
                # It goes first and comes last: with it a checkpoint is complete.
                assert old.items() <= seen.items() or whole.items() <= seen.items()
            if seen != whole:  # else it came too late
                unasked = name != "_write_draft" and not before  # the journal knows it
                with counted_blocks() as again:
                    run(tmp_path, out, overwrite=overwrite and not unasked)
                assert again == [] or name == "_write_draft"  # of a side file, before the blocks
            assert contents(tmp_path / out) == whole, out


def test_until_the_marker_is_there_no_reader_takes_the_folder_for_a_checkpoint(source, tmp_path):
    compress(tmp_path, "whole")
    older(tmp_path / "out", tmp_path / "whole")
    for call in range(3):
        with interrupted_at("_take_name", call, before=False):
            compress(tmp_path, "out", overwrite=True)
        assert not (tmp_path / "out" / "tq_config.json").exists()
        with pytest.raises(tq3.Tq3Error):
            tq3.restore(tmp_path / "out", tmp_path / "back")
    compress(tmp_path, "out")
    tq3.restore(tmp_path / "out", tmp_path / "back")


def test_another_run_must_not_take_a_half_published_folder_unasked(source, tmp_path):
    with interrupted_at("_take_name", 2, before=True):
        compress(tmp_path, "out")
    left = contents(tmp_path / "out")
    for options in ({"bits": 2}, {"resume": False}):
        with pytest.raises(UsageError, match="not empty"):
            compress(tmp_path, "out", **options)
        assert contents(tmp_path / "out") == left
    compress(tmp_path, "out", bits=2, overwrite=True)
    compress(tmp_path, "whole", bits=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("at", ["clear", "begin"])
def test_a_run_that_was_killed_giving_up_another_leaves_no_false_journal(source, tmp_path, at):
    """The other one was about to publish over an older checkpoint with the very same headers."""
    compress(tmp_path, "whole")
    older(tmp_path / "out", tmp_path / "whole")
    with interrupted_at("_take_name", 0, before=True):
        compress(tmp_path, "out", overwrite=True)
    owner: type = DraftFolder if at == "clear" else Journal
    method: Callable[..., object] = getattr(owner, at)

    def killed(*arguments: object, **options: object) -> object:
        method(*arguments, **options)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, at, killed)
        patch.setattr(TargetFolder, "_remove_useless", lambda _: None)
        with pytest.raises(KeyboardInterrupt):
            compress(tmp_path, "out", bits=2, overwrite=True)
    compress(tmp_path, "out", overwrite=True)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
