"""The server of these tests does for the stock client what the Hub does, in both of its modes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.factories import contents, random_tensor, tiny_checkpoint
from support.hub.hubs import WITH_XET, Hub

TRANSFER = """
import sys
from huggingface_hub import HfApi, snapshot_download
source, cache = sys.argv[1:]
api = HfApi()
api.create_repo("tester/model", exist_ok=True)
api.upload_folder(repo_id="tester/model", folder_path=source)
assert set(api.list_repo_files("tester/model")) >= {"config.json", "model.safetensors"}
print(snapshot_download("tester/model", cache_dir=cache, force_download=True))
"""


@pytest.mark.parametrize("mode", [WITH_XET, "lfs"])
def test_the_stock_client_uploads_and_downloads(tmp_path: Path, mode):
    tensors = {"a.weight": random_tensor(512, 4096), "b.weight": random_tensor(512, 4096, seed=1)}
    source = tiny_checkpoint(tmp_path / "source", tensors)
    (tmp_path / "hub").mkdir()
    xet = ("--xet", f"local://{tmp_path}/cas") if mode == "xet" else ()
    (tmp_path / "cas").mkdir()
    hub = Hub(tmp_path / "hub", "--page", "2", "--chunk", str(2**20), *xet)
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
    environment |= {"HF_TOKEN": "hf_any"} | ({} if xet else {"HF_HUB_DISABLE_XET": "1"})
    try:
        done = subprocess.run(
            (sys.executable, "-c", TRANSFER, str(source), str(tmp_path / "cache")),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        hub.close()
    assert done.returncode == 0, done.stderr
    fetched = contents(Path(done.stdout.splitlines()[-1]))
    fetched.pop(".gitattributes")
    assert fetched == contents(source)
    asked = [json.loads(line)["p"] for line in hub.trace_path.read_text().splitlines()]
    assert any("/lfs/part/" in path for path in asked) == (mode == "lfs")
    for token in ("xet-write-token", "xet-read-token"):
        assert any(token in path for path in asked) == (mode == "xet")
