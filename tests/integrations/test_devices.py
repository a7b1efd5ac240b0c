"""Where a packed model's layers may lie: devices by a map, the disk, several processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from support.integrations.packed_models import (
    FIRST_ON_DISK,
    GPT2,
    PROMPT,
    assert_close,
    assert_greedy,
    generated,
    load,
    logits,
    make_case,
    offloaded,
)
from support.models.tiny_models import BY_NAME
from support.models.tq3_folder import read_tensors

import tq3
from tq3.errors import UsageError

LLAMA, QWEN3_MOE = BY_NAME["llama"], BY_NAME["qwen3_moe"]


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
def test_device_maps(case, device_map):
    model = load(case.architecture, case.compressed, device_map=device_map)
    assert torch.equal(logits(model), logits(load(case.architecture, case.compressed)))


def on_its_own(case, folder, room):
    """Placed by `device_map="auto"` with `room` bytes of memory."""
    options = {"device_map": "auto", "max_memory": {"cpu": room}, "offload_folder": folder}
    return load(LLAMA, case.compressed, **options)


def test_auto_counts_packed_bytes_and_sends_to_the_disk_what_finds_no_room(llama, tmp_path):
    whole = load(LLAMA, llama.compressed)
    n_bytes = sum(parameter.nbytes for parameter in whole.parameters())
    assert not any(p.is_meta for p in on_its_own(llama, tmp_path, n_bytes * 3 // 2).parameters())
    spread = on_its_own(llama, tmp_path, n_bytes * 9 // 10)
    assert set(spread.hf_device_map.values()) == {"cpu", "disk"}
    assert torch.equal(logits(spread), logits(whole))


def test_layers_on_the_disk_compute_and_generate_the_same(llama, tmp_path):
    model, whole = offloaded(llama, tmp_path), load(LLAMA, llama.compressed)
    assert torch.equal(logits(model), logits(whole))
    assert torch.equal(generated(model, 2), generated(whole, 2))


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
def test_layers_on_the_disk_are_saved_as_they_were(llama, tmp_path):
    offloaded(llama, tmp_path / "offload").save_pretrained(tmp_path / "saved")
    stored, saved = read_tensors(llama.compressed), read_tensors(tmp_path / "saved")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name].to(t.dtype), t) for name, t in stored.items())
    assert tq3.verify(tmp_path / "saved").ok


GPT2_ON_DISK = {
    **{f"transformer.{name}": "cpu" for name in ("wte", "wpe", "drop", "h.1", "ln_f")},
    "transformer.h.0": "disk",
    "lm_head": "cpu",
}
DECODED = {"routers": (QWEN3_MOE, FIRST_ON_DISK), "all matrices": (GPT2, GPT2_ON_DISK)}


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
@pytest.mark.parametrize("architecture, places", DECODED.values(), ids=DECODED)
def test_what_must_be_held_decoded_can_lie_on_the_disk(architecture, places, tmp_path):
    """It is decoded at each use."""
    case = make_case(architecture, tmp_path)
    whole, folder = load(architecture, case.compressed), tmp_path / "offload"
    spread = load(architecture, case.compressed, device_map=places, offload_folder=folder)
    offloaded = [parameter for parameter in spread.parameters() if parameter.is_meta]
    assert torch.equal(logits(spread), logits(whole))
    assert all(parameter.is_meta for parameter in offloaded)
    spread.save_pretrained(tmp_path / "saved")
    stored, saved = read_tensors(case.compressed), read_tensors(tmp_path / "saved")
    assert saved.keys() == stored.keys()
    assert all(torch.equal(saved[name].to(t.dtype), t) for name, t in stored.items())
    assert tq3.verify(tmp_path / "saved").ok


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(QWEN3_MOE, marks=pytest.mark.slow), GPT2],
    ids=lambda a: a.name,
)
def test_accelerate_offloads_what_is_held_decoded_as_any_parameter(architecture, tmp_path):
    case = make_case(architecture, tmp_path)
    wanted = logits(load(architecture, case.compressed))
    cpu, model = torch.device("cpu"), load(architecture, case.compressed)
    assert torch.equal(cpu_offload(model, execution_device=cpu)(PROMPT).logits, wanted)
    model = load(architecture, case.compressed)
    on_disk = disk_offload(model, tmp_path / "offload", execution_device=cpu)
    assert torch.equal(on_disk(PROMPT).logits, wanted)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_computes_and_generates_what_the_processor_does(case):
    model = load(case.architecture, case.compressed, device_map="cuda")
    restored = load(case.architecture, case.restored)
    assert_close(logits(model).cpu(), logits(restored))
    assert_greedy(generated(model, 4).cpu(), restored)


@pytest.mark.parametrize("size", ["tp_size", "ep_size", "fsdp_size", "dp_replicate_size"])
def test_processes_that_would_cut_matrices_are_refused(llama, size):
    """Transformers would leave packed layers whole and add their answers up, without a word."""
    config = transformers.AutoConfig.from_pretrained(llama.compressed)
    config.distributed_config = SimpleNamespace(pp_size=2, **{size: 2})
    with pytest.raises(UsageError, match=rf"can't cut packed ones \(found {size}=2\).*pp_size"):
        load(LLAMA, llama.compressed, config=config)


STAGE = """
import sys, torch, transformers
from transformers.distributed import DistributedConfig
import tq3.integrations.transformers
torch.set_num_threads(1)
model = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], dtype=torch.float32, distributed_config=DistributedConfig(pp_size=2))
with torch.no_grad():
    torch.save(model(torch.load(sys.argv[2])).logits, sys.argv[3] + "/" + sys.argv[4])
assert len([n for n, _ in model.named_parameters() if n.endswith("q_proj.weight.tq_packed")]) == 1
"""


@pytest.mark.slow
def test_two_processes_share_the_layers_and_answer_as_one(llama, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    torch.save(PROMPT, tmp_path / "prompt")
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    stages = [
        subprocess.Popen(
            (sys.executable, "-c", STAGE, llama.compressed, tmp_path / "prompt", tmp_path, rank),
            env=os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank},
        )
        for rank in "01"
    ]
    assert [stage.wait(120) for stage in stages] == [0, 0]
    whole = logits(load(LLAMA, llama.compressed))
    assert all(torch.equal(torch.load(tmp_path / rank), whole) for rank in "01")
