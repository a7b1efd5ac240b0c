"""The commands push and card as a person meets them: tables, questions, exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from support.hub.hubs import TOKEN, Hub
from support.hub.pushing import (
    REPO,
    SOURCE,
    SOURCE_CARD,
    answer_in_terminal,
    packed,
    remote,
    run_tq3,
    writes,
)

import tq3

NON_COMMERCIAL = SOURCE_CARD.replace("apache-2.0", "cc-by-nc-4.0")


@pytest.fixture
def hub(start_hub: Callable[..., Hub], tmp_path: Path) -> Hub:
    store = tmp_path / "store"
    store.mkdir()
    return start_hub("--token", TOKEN, "--xet", f"local://{store}", token=TOKEN)


def test_a_push_ends_with_a_table_and_says_on_the_way_what_it_does(hub, tmp_path):
    done = run_tq3(hub, "push", packed(tmp_path), REPO)
    assert done.returncode == 0
    lines = dict(line.split("  ", 1) for line in done.stdout.splitlines() if "  " in line)
    assert {name: text.strip() for name, text in lines.items()}.keys() == {
        *("checkpoint", "repository", "at", "revision", "uploaded", "there already", "card"),
        "compared",
    }
    assert lines["repository"].strip() == f"{REPO} (public)"
    assert "checksums" in done.stderr and "done, uploading" in done.stderr
    assert run_tq3(hub, "push", tmp_path / "out", REPO, "-q").stdout == ""


def test_a_dry_run_lists_what_would_go(hub, tmp_path):
    done = run_tq3(hub, "push", packed(tmp_path), REPO, "--dry-run")
    assert done.returncode == 0 and writes(hub) == []
    for name in ("model-00001-of-00003.safetensors", "README.md", "tq3_manifest.json"):
        assert name in done.stdout
    assert "would go to" in done.stdout and "compared" not in done.stdout


def test_without_a_terminal_a_non_commercial_model_does_not_become_public(hub, tmp_path):
    out = packed(tmp_path, NON_COMMERCIAL)
    refused = run_tq3(hub, "push", out, REPO)
    assert refused.returncode == 2 and writes(hub) == []
    assert "notice: the source's licence, cc-by-nc-4.0, does not allow" in refused.stderr
    assert "--private, or --yes where you have the right to share it" in refused.stderr
    agreed = run_tq3(hub, "push", out, REPO, "--yes")
    assert agreed.returncode == 0 and remote(hub)
    assert "notice: the source's licence" in agreed.stderr


def test_a_copy_of_a_private_model_does_not_become_public_unasked(hub, tmp_path):
    HfApi(endpoint=hub.endpoint, token=TOKEN).create_repo(SOURCE, private=True)
    refused = run_tq3(hub, "push", packed(tmp_path), REPO)
    assert refused.returncode == 2 and "the source is private" in refused.stderr
    assert run_tq3(hub, "push", tmp_path / "out", REPO, "--private").returncode == 0


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("no", 2), ("\x04", 2)])
def test_on_a_terminal_the_user_is_asked(hub, tmp_path, answer, code):
    out = packed(tmp_path, NON_COMMERCIAL)
    found, seen = answer_in_terminal(hub, answer, "push", out, REPO)
    assert (found, bool(writes(hub))) == (code, code == 0), seen
    assert "Make a copy public all the same? Type yes:" in seen


def test_a_hub_that_is_not_there_is_one_sentence_and_exit_code_6(hub, tmp_path):
    out = packed(tmp_path)
    found = run_tq3(hub, "push", out, REPO, HF_ENDPOINT="http://127.0.0.1:9")
    assert found.returncode == 6
    assert found.stderr.splitlines()[-1].startswith(f"tq3: error: {REPO}: not reachable")
    assert "Traceback" not in found.stderr


def test_the_card_is_printed_as_it_would_be_pushed(hub, tmp_path):
    out = packed(tmp_path)
    printed = run_tq3(hub, "card", out, "--repo-id", REPO)
    assert printed.stdout == tq3.make_card(out, REPO)
    assert "# out\n" in run_tq3(hub, "card", out).stdout
    assert writes(hub) == []
    failed = run_tq3(hub, "card", tmp_path)
    assert (failed.returncode, failed.stdout) == (3, "")
