"""`--part` and `tq3 finish` on the command line; parts that are killed are joined all the same."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from support.crashes import killing_child
from support.factories import contents, mixed_tensors, tiny_checkpoint, too_large, visible
from typer.testing import CliRunner

import tq3
from tq3.cli.app import app

SHARDS = ("--max-shard-size", "8000")
KILLS = 20
PHASES = {
    "part": ("encoding", "flushing", "recording"),
    "finish": ("copying", "recording", "publishing", "cleaning"),
}


def tq3_of(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    found = CliRunner().invoke(app, [str(word) for word in words])
    return found.exit_code, found.stdout, found.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "in", mixed_tensors())


def test_parts_are_written_shown_and_joined(source, tmp_path):
    out = tmp_path / "out"
    code, shown, told = tq3_of("compress", source, out, "--part", "2/2", *SHARDS)
    assert code == 0
    assert f"part 2/2 of {out}" in shown
    assert "part 2/2: shards 5 to 9 of 9" in told
    code, _, told = tq3_of("finish", out)
    assert code == 3
    assert "part 1: missing" in told
    assert "--part 1/2" in told
    code, shown, _ = tq3_of("inspect", out)
    assert code == 0
    assert "2 of 2" in shown
    figures = json.loads(tq3_of("inspect", out, "--json")[1])
    assert figures["faults"] == {"1": "missing"}
    assert figures["whole"] == {"2": [5, 6, 7, 8, 9]}
    figures = json.loads(tq3_of("compress", source, out, "--part", "1/2", "--json", *SHARDS)[1])
    assert figures["part"] == [1, 2]
    code, shown, _ = tq3_of("finish", out)
    assert code == 0
    assert str(out) in shown
    tq3.compress(source, tmp_path / "whole", max_shard_size=8000)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_part_that_is_none_ends_with_a_sentence(source, tmp_path):
    code, _, told = tq3_of("compress", source, tmp_path / "out", "--part", "5/4")
    assert code == 2
    assert "--part 5/4 is no part" in told


def test_what_is_kept_of_a_stopped_part_is_its_own_folder(source, tmp_path, monkeypatch):
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tq3.pipelines.part._PartRun._write", stopped)
    _, _, told = tq3_of("compress", source, tmp_path / "out", "--part", "1/2", *SHARDS)
    assert "0001-of-0002" in told or not (tmp_path / "out").exists()


@pytest.mark.slow
def test_parts_that_are_killed_again_and_again_are_joined_to_the_right_bytes(tmp_path):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng, kills, completed = random.Random(seed), 0, 0
    source = tiny_checkpoint(tmp_path / "in", too_large(mixed_tensors(), 0, 2), shards=3)
    (source / "tokenizer.json").write_text("{}")
    with killing_child() as child:

        def run(out: Path, words: list[str], phases: tuple[str, ...] | None) -> int:
            mark = phases and [f"+{rng.choice(phases)}", rng.randint(1, 8), rng.random() / 100]
            request = {
                "arguments": words,
                "log": str(tmp_path / "log"),
                "output": str(tmp_path / "output"),
                "slow": 0.002,
                "block_bytes": 3000,
                "kill": mark,
            }
            assert child.stdin
            assert child.stdout
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            return int(child.stdout.readline())

        assert not run(tmp_path, ["compress", str(source), str(tmp_path / "whole"), *SHARDS], None)
        whole = contents(tmp_path / "whole")
        while kills < KILLS:
            out, of = tmp_path / f"out-{kills}", rng.randint(1, 4)
            parts = [
                ["compress", str(source), str(out), "--part", f"{n}/{of}", *SHARDS]
                for n in range(1, of + 1)
            ]
            for words in [*rng.sample(parts, of), ["finish", str(out)]]:
                phases = PHASES["finish" if words[0] == "finish" else "part"]
                while status := run(out, words, phases if rng.random() < 0.8 else None):
                    if status == 9:
                        kills += 1
                        assert "tq_config.json" not in visible(out) or visible(out) == whole
                        if visible(out) == whole:
                            break  # it was about to say so
                    else:  # it had published, and was killed while it cleaned up
                        assert visible(out) == whole, (tmp_path / "output").read_text()
                        break
            assert visible(out) == whole
            completed += 1
    print(f"{kills} kills, {completed} times the right bytes")
