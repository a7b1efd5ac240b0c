"""Which kernels are chosen, on which device, for how many tokens; no GPU is asked."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from support.cuda.emulated import SHARED_BYTES, Device
from support.runtime.layers import activations, layer

from tq3.runtime.cuda import calls, crossings, layout, linear, support
from tq3.runtime.cuda import pairs as pairs_of_experts
from tq3.runtime.cuda.crossings import Crossing

nvrtc = pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

# Name, compute capability, multiprocessors: and what is compiled for it.
DEVICES = {
    "NVIDIA A100": ((8, 0), 108, "sm_80"),
    "NVIDIA A10": ((8, 6), 72, "sm_86"),
    "NVIDIA GeForce RTX 4090": ((8, 9), 128, "sm_89"),
    "NVIDIA H100": ((9, 0), 132, "sm_90"),
    "NVIDIA H200": ((9, 0), 132, "sm_90"),
    "NVIDIA B200": ((10, 0), 148, "sm_100"),
    "NVIDIA RTX PRO 6000": ((12, 0), 188, "sm_120"),
    "NVIDIA GB10": ((12, 1), 48, "sm_121"),
}
USUAL = Crossing(1024, 1 << 24, "made up")
REFUSED = {
    "Tesla V100": ((7, 0), r"compute capability 8\.0 .*Tesla V100 has 7\.0"),
    "Tesla T4": ((7, 5), r"Tesla T4 has 7\.5"),
    "NVIDIA of tomorrow": ((99, 0), r"NVRTC .* does not know NVIDIA of tomorrow"),
}


class Recorder:
    """A device that launches nothing and remembers what it was asked for."""

    def __init__(self, processors, crossing):
        self.processors, self.crossing, self.asked = processors, crossing, []
        self.shared_bytes = SHARED_BYTES

    def launch(self, call):
        self.asked.append(call)

    def load(self, kernel, instance):
        pass

    def sequence(self):
        return 0


@pytest.fixture
def devices(monkeypatch):
    """Call it with a name and a capability: torch then says that device 0 is this."""

    def pretend(name, capability, processors=1):
        class Properties:
            multi_processor_count = processors
            shared_memory_per_multiprocessor = SHARED_BYTES

        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
        monkeypatch.setattr("tq3.runtime.cuda.device.Device.load", lambda *_: None)
        support._launcher.cache_clear()

    yield pretend
    support._launcher.cache_clear()


@pytest.mark.parametrize("name", DEVICES)
def test_a_device_gets_code_of_its_own_architecture(devices, name):
    capability, processors, architecture = DEVICES[name]
    devices(name, capability, processors)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found: Any = support.launcher(torch.device("cuda"))
    assert (found.architecture, found.processors) == (architecture, processors)
    rows = crossings.table()
    assert found.crossing == rows.get(architecture, rows[crossings.OTHERS])
    assert support.launcher(torch.device("cuda:0")) is found


@pytest.mark.parametrize("name", REFUSED)
def test_another_device_is_told_why_once(devices, name):
    capability, reason = REFUSED[name]
    devices(name, capability)
    with pytest.warns(UserWarning, match=reason) as told:
        assert support.launcher(torch.device("cuda")) is None
        assert support.launcher(torch.device("cuda")) is None
    assert len(told) == 1
    assert "decoded at each use" in str(told[0].message)


def test_a_missing_package_is_named(devices, monkeypatch):
    devices("NVIDIA H100", (9, 0))
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    monkeypatch.delitem(__import__("sys").modules, "tq3.runtime.cuda.compiler", raising=False)
    monkeypatch.delattr("tq3.runtime.cuda.compiler", raising=False)
    with pytest.warns(UserWarning, match=r"cuda.bindings.*pip install 'tq3\[cuda\]'"):
        assert support.launcher(torch.device("cuda")) is None


@pytest.mark.parametrize("where", ["compiler.architecture_for", "device.Device.load"])
def test_a_compiler_or_a_driver_that_fails_is_told(devices, monkeypatch, where):
    def fail(*_):
        raise RuntimeError("no such library")

    devices("NVIDIA H100", (9, 0))
    monkeypatch.setattr(f"tq3.runtime.cuda.{where}", fail)
    with pytest.warns(UserWarning, match="can't be used: no such library"):
        assert support.launcher(torch.device("cuda")) is None


def test_other_vendors_and_processors_have_no_kernels(devices, monkeypatch):
    devices("AMD", (9, 0))
    monkeypatch.setattr(torch.version, "hip", "6.3")
    with pytest.warns(UserWarning, match="NVIDIA"):
        assert support.launcher(torch.device("cuda")) is None
    for kind in ("cpu", "meta", "mps"):
        assert support.launcher(torch.device(kind)) is None


def asked(rows, columns, tokens, processors, crossing=USUAL):
    """Instances and grids for a layer of 3 bits in groups of 128, without the first kernel's."""
    tiles, units = -(-rows // 32), -(-columns // 128)
    words = torch.empty(tiles, units, 3, 32, 4, dtype=torch.int32, device="meta")
    norms = torch.empty(tiles, units, 8, 4, device="meta")
    x = torch.empty(tokens, columns, dtype=torch.bfloat16, device="meta")
    device: Any = Recorder(processors, crossing)
    y = linear.linear(device, x, layout.Tiles(words, norms), rows, 128, 128)
    assert (y.shape, y.dtype) == ((tokens, rows), torch.bfloat16)
    first, *others = device.asked
    is_decoded = tokens > crossing.most_tokens
    assert first.kernel == ("rotate" if is_decoded else "rotate_quantise")
    return [(call.instance.partition("<")[0], call.instance, call.grid) for call in others]


@pytest.mark.parametrize("name", DEVICES)
def test_a_large_layer_takes_one_block_a_tile_for_few_tokens(name):
    instance = "multiply<Dtype::kBF16, 3, 128>"
    for tokens in (1, 4):
        found = asked(17408, 5120, tokens, DEVICES[name][1])
        assert found == [("multiply", instance, (1, 544, 1))]


@pytest.mark.parametrize("name", DEVICES)
def test_more_tokens_take_a_block_for_eight_tiles(name):
    """And as many blocks for a tile's turns as leave two for each multiprocessor, if there are so
    many.
    """
    processors = DEVICES[name][1]
    for tokens, columns, of_tokens in ((5, 2, 1), (16, 4, 1), (17, 8, 1), (33, 8, 2), (64, 8, 2)):
        (kernel, instance, grid), (added, *_) = asked(17408, 5120, tokens, processors)
        assert (kernel, added) == ("multiply_shared", "add_terms")
        assert instance == f"multiply_shared<3, 128, {columns}>"
        assert grid[:2] == (of_tokens, 68)
        blocks = of_tokens * 68 * grid[2]
        assert grid[2] == 8 or blocks >= 2 * processors
        assert grid[2] == 1 or blocks // 2 < 2 * processors or tokens > 16


def test_so_many_sums_wait_in_a_block_as_two_blocks_have_room_for():
    for shared_kib, turns in ((100, 1), (164, 2), (228, 4)):
        device = Recorder(1, USUAL)
        device.shared_bytes = shared_kib << 10
        assert calls.turns_of_a_block(device, 1000, 3, 128, 8) == turns
        assert calls.turns_of_a_block(device, 1000, 3, 128, 2) >= turns
    assert calls.turns_of_a_block(Recorder(500, USUAL), 1000, 3, 128, 2) == 8
    assert calls.turns_of_a_block(Recorder(501, USUAL), 1000, 3, 128, 2) == 4
    assert calls.turns_of_a_block(Recorder(5000, USUAL), 1000, 3, 128, 2) == 1


@pytest.mark.parametrize("name", DEVICES)
def test_a_small_layer_keeps_all_multiprocessors_busy(name):
    processors = DEVICES[name][1]
    (_, _, (parts, tiles, _)), (added, *_) = asked(1024, 5120, 1, processors)
    assert added == "add_terms"
    assert tiles == 32
    # Two blocks for each multiprocessor, but for what the five steps of eight warps allow.
    assert parts == min(2 * processors // 32, 5)
    assert [call[0] for call in asked(1024, 5120, 5, processors)] == [
        "multiply_shared",
        "add_terms",
    ]


def test_many_tokens_take_decoded_pieces():
    for most_tokens, piece_weights in ((1024, 1 << 24), (128, 1 << 26)):
        crossing = Crossing(most_tokens, piece_weights, "made up")
        found = asked(17408, 5120, most_tokens + 1, 132, crossing)
        assert {kernel for kernel, *_ in found} == {"decode"}
        assert len(found) == -(-17408 * 5120 // piece_weights)
        assert asked(17408, 5120, most_tokens, 132, crossing)[0][0] == "multiply_shared"


def test_a_measured_crossing_takes_the_place_of_an_estimate(tmp_path):
    path = tmp_path / "crossings.json"
    path.write_bytes(crossings.PATH.read_bytes())
    measured = Crossing(192, 1 << 25, "NVIDIA H200, 30 Nov 2026")
    crossings.write("sm_90", measured, path)
    crossings.write("sm_120", measured, path)
    before, after = crossings.table(), crossings.table(path)
    assert after == before | {"sm_90": measured, "sm_120": measured}
    assert list(after) == sorted(after)
    assert path.read_text().count("\n") == 2 + 5 * len(after)


def test_experts_take_jobs_for_those_that_occur():
    device = Device("random")
    bits, group, count = 3, 64, 6
    made = [layer(40, 3, bits, group, seed) for seed in range(count)]
    packed, norms = (torch.stack(part) for part in zip(*made, strict=True))
    layers = layout.repack(packed, norms, bits, group)
    for pairs in (1, 5, 30):
        experts = torch.randint(0, count - 1, (pairs,))
        order, jobs = pairs_of_experts.sort_by_expert(experts, count, calls.TOKENS_A_COLUMN)
        real = jobs[jobs[:, 1] < jobs[:, 2]].tolist()
        assert {layer for layer, *_ in real} == set(experts.tolist())
        assert len(jobs) <= pairs // 4 + min(count, pairs)
        done = [place for _, first, end, _ in real for place in range(first, end)]
        assert sorted(done) == list(range(pairs))
        for expert, first, end, _ in real:
            assert end - first <= 4
            assert set(experts[order[first:end]].tolist()) == {expert}
        # What another expert holds does not matter.
        spoiled = layout.Tiles(layers.words, layers.norms.clone())
        spoiled.norms[count - 1] = torch.nan
        x, routing = activations(pairs, 180), pairs_of_experts.route(experts, count, group)
        found = [
            pairs_of_experts.multiply(device, x, each, routing, 40, group, group)
            for each in (layers, spoiled)
        ]
        assert torch.equal(*found)
