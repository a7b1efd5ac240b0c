"""The program itself on repositories: killed, stopped, refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from support.factories import contents, random_tensor, tiny_checkpoint
from support.hub.hubs import WITH_XET, Hub
from support.processes import end_of, has_done_work, start, wait_until
from typer.testing import CliRunner, Result

from tq3.cli.app import app

MODEL = "some-org/some-model"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A model of 34 MB."""
    values = random_tensor(2048, 2048)
    tensors = {f"model.layers.{i}.mlp.up_proj.weight": values for i in range(4)}
    tiny_checkpoint(tmp_path / "models" / MODEL, tensors, shards=2)
    return tmp_path / "models"


@pytest.fixture
def hub(start_hub, models, tmp_path, monkeypatch) -> Hub:
    """A server that a process started by the test uses, too."""
    hub = start_hub("--seed", models)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    return hub


def tq3(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_download_that_is_killed_goes_on_to_the_same_bytes(hub, models, tmp_path):
    hub.control(pace=3_000_000)
    run = start("compress", MODEL, tmp_path / "out", "--workers", 2)
    wait_until(lambda: has_done_work(tmp_path / "out"), run)
    run.send_signal(signal.SIGKILL)
    end_of(run)
    hub.control(pace=None)
    time.sleep(1)  # until the server has noticed
    before = hub.sent()
    run = start("compress", MODEL, tmp_path / "out", "--json")
    out, err = end_of(run)
    assert run.returncode == 0, err
    assert "continuing an unfinished run" in err
    report, size = json.loads(out), sum(p.stat().st_size for p in models.rglob("*.safetensors"))
    assert 0 < report["share_before"] < 1
    assert hub.sent() - before < (1.02 - report["share_before"]) * size
    assert tq3("compress", MODEL, tmp_path / "whole").exit_code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["while bytes come", "in a silence", "before an answer"])
def test_ctrl_c_ends_a_run_soon(hub, tmp_path, moment):
    faults: dict[str, dict[str, Any]] = {
        "while bytes come": {"pace": 1_000_000},
        "in a silence": {"stall": {".safetensors": [100_000, 60, 100]}},
        "before an answer": {"fail": {"GET /cdn/": [503, 10**6, None, {"Retry-After": "60"}]}},
    }
    hub.control(**faults[moment])
    run = start("compress", MODEL, tmp_path / "out")
    wait_until(lambda: any("/cdn/" in line.get("p", "") for line in hub.trace()), run)
    time.sleep(0.3)
    started = time.monotonic()
    run.send_signal(signal.SIGINT)
    _, err = end_of(run)
    assert run.returncode == 130
    assert "interrupted" in err
    assert time.monotonic() - started < 10  # the silence is of twenty


def test_a_repository_that_is_not_there_is_exit_code_6(hub, tmp_path):
    for command in (("inspect",), ("verify",), ("compress", "--dry-run"), ("restore",)):
        place = (tmp_path / "out",) if command[0] in ("compress", "restore") else ()
        result = tq3(command[0], "some-org/other", *place, *command[1:])
        assert result.exit_code == 6
        assert result.stdout == ""
        assert "some-org/other: no such repository, or a private one (401); correct the name" in (
            " ".join(result.stderr.split())
        )
    assert not (tmp_path / "out").exists()


def test_dry_run_inspect_and_structure_show_a_repository(hub, tmp_path):
    for command in (("compress", "--dry-run"), ("inspect",)):
        result = tq3(command[0], MODEL, *command[1:])
        assert result.exit_code == 0, result.stderr
        assert f"{MODEL} at " in result.stdout
    assert tq3("compress", MODEL, tmp_path / "models" / "org" / "small").exit_code == 0
    result = tq3("verify", MODEL, "--structure")
    assert result.exit_code == 5
    assert "only the structure was looked at" in result.stdout
    result = tq3("verify", MODEL, "--structure", "--source", MODEL)
    assert (result.exit_code, result.stdout) == (2, "")


def test_a_revision_is_chosen_by_its_option(hub):
    before = HfApi(endpoint=hub.endpoint).model_info(MODEL).sha
    hub.move(MODEL, {"config.json": b"not JSON"})
    assert tq3("inspect", MODEL).exit_code == 3
    assert tq3("inspect", MODEL, "--revision", before).exit_code == 0
    assert tq3("inspect", MODEL, "--revision", "nowhere").exit_code == 6


def test_the_progress_of_a_run_from_the_hub_shows_both_rates(hub, tmp_path):
    hub.control(pace=3_000_000)
    run = start("compress", MODEL, tmp_path / "out", "--workers", 4)
    _, err = end_of(run)
    assert run.returncode == 0, err
    assert "network " in err
    assert "encoder " in err
    assert "the network binds" in err


def test_a_process_leaves_nothing_in_the_hub_cache(hub, tmp_path):
    run = start("compress", MODEL, tmp_path / "out")
    _, err = end_of(run)
    assert run.returncode == 0, err
    home = Path(os.environ["HF_HOME"])
    assert not list(home.rglob("*safetensors*")) if home.exists() else True


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("tester/model")
HfApi().upload_folder(repo_id="tester/model", folder_path=sys.argv[1])
"""


@pytest.mark.parametrize("mode", [WITH_XET, "lfs"])
def test_a_model_that_the_stock_client_uploaded_is_read_and_downloaded(
    start_hub, models, tmp_path, monkeypatch, mode
):
    (tmp_path / "cas").mkdir()
    hub = start_hub(*(("--xet", f"local://{tmp_path}/cas") if mode == "xet" else ()))
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    if mode == "lfs":
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    subprocess.run((sys.executable, "-c", UPLOAD, str(models / MODEL)), check=True)
    for out, options in (("read", ()), ("downloaded", ("--download",))):
        run = start("compress", "tester/model", tmp_path / out, *options)
        _, err = end_of(run)
        assert run.returncode == 0, err
    assert contents(tmp_path / "read") == contents(tmp_path / "downloaded")
    tokens = [line for line in hub.trace() if "xet-read-token" in line.get("p", "")]
    assert bool(tokens) == (mode == "xet"), "the download went another way than the mode's"
