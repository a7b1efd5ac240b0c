"""scripts/gpu_check.py without a GPU: its cases on the emulated device, its times made up."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import gpu_check
import pytest
import torch
from emulated import Device
from gpu import cases, compilation, decoding, exactness, machine, throughput
from gpu.kinds import KINDS
from gpu.section import Section, text
from instances import KERNELS, instances

from tq3.runtime.cuda import crossings, source, support

PROCESSOR = torch.device("cpu")
# One instance of each kernel, as each is compiled here.
SMALL = {
    "bits": 3,
    "group": 128,
    "rotation": 128,
    "dtype": torch.bfloat16,
    "rows": 33,
    "missing": 5,
    "tokens": 3,
}


def small_case(kind):
    """The first of its kind, smaller."""
    case = next(case for case in cases.all_cases() if case.kind == kind)
    few = {"n": 16 if kind == "split" else 2} | ({"missing": 0} if kind == "real shape" else {})
    return replace(case, **SMALL | few)


class Recorder:
    """Launches nothing, and remembers what it was asked for."""

    processors, crossing = 1, crossings.crossing_of("sm_80")

    def __init__(self):
        self.asked = []

    def launch(self, call):
        self.asked.append(call)


class Machine:
    """A processor for a GPU. A launch takes the time that `cost` says, all else a microsecond."""

    device = PROCESSOR

    def __init__(self, on, cost=lambda call: 0.0):
        self.on, self._cost = on, cost

    def seconds(self, task):
        before = len(getattr(self.on, "asked", []))
        task()
        return 1e-6 + sum(map(self._cost, getattr(self.on, "asked", [])[before:]))

    def capture(self, task):
        result = task()

        def replay():
            again = task()
            if result is not None:
                result.copy_(again)

        return machine.Captured(replay, result)

    def allocated(self, task):
        task()
        return 3 * machine.MIB, 5 * machine.MIB


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_of_each_kind_is_equal_on_the_emulated_device(gpu, kind):
    (outcome,) = exactness.check([small_case(kind)], gpu, PROCESSOR)
    assert outcome.fault == ""


def test_a_wrong_kernel_is_listed_with_its_case():
    wrong = source.kernel("multiply").replace("0x58371f0aU", "0x59371f0aU")
    chosen = [small_case("multiply"), small_case("quantise")]
    outcomes = exactness.check(chosen, Device(multiply=wrong), PROCESSOR)
    section = exactness.section(outcomes)
    assert [row["equal"] for row in section.rows] == [0, 1]
    (fault,) = section.faults
    assert "of 99 values differ, (" in fault
    assert "kind='multiply', bits=3, group=128" in fault
    assert "1 of 2 cases are equal" in text(section)


def test_a_kernel_that_fails_does_not_end_the_others():
    class Failing(Device):
        def launch(self, call):
            if call.kernel == "multiply":
                raise RuntimeError("CUDA: CUDA_ERROR_INVALID_VALUE")
            super().launch(call)

    chosen = [small_case("multiply"), small_case("quantise")]
    first, second = exactness.check(chosen, Failing(), PROCESSOR)
    assert "CUDA_ERROR_INVALID_VALUE" in first.fault
    assert second.fault == ""


def test_the_cases_ask_for_every_instance_of_every_kernel(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(support, "launcher", lambda _: recorder)
    for case in cases.all_cases():
        # Of rows and groups, only those of split layers choose an instance.
        small = case if case.kind == "split" else replace(case, rows=1, n=1)
        if case.kind != "real shape":
            found, _ = KINDS[case.kind]
            found(small, cases.draw(small), recorder, PROCESSOR)
    asked = {call.instance for call in recorder.asked}
    assert asked == {instance for kernel in KERNELS for instance in instances(kernel)}


def test_the_cases_have_the_shapes_that_kernels_find_hard():
    chosen = cases.all_cases()
    assert {case.kind for case in chosen} == set(KINDS)
    assert {case.tokens for case in chosen} >= {1, 4, 5, 16, 17, 33, 40}
    assert any(case.rows % 32 for case in chosen)
    assert {case.n % 8 for case in chosen} > {1, 3}
    special = [cases.draw(case).x[0] for case in chosen if case.kind == "quantise"]
    assert any(x.isnan().any() for x in special)
    assert any(x.isinf().any() for x in special)
    assert any(not x.any() for x in special)


@pytest.mark.parametrize(
    ("found", "expected", "fault"),
    [
        ([1.0, torch.nan], [1.0, -torch.nan], ""),
        ([1.0, 0.0], [1.0, -0.0], "1 of 2 values differ, (1,): 0.0, not -0.0"),
        ([1.0], [1.0, 2.0], "(1,) of torch.float32, not (2,) of torch.float32"),
    ],
)
def test_results_are_compared_bit_for_bit(found, expected, fault):
    assert exactness.difference([torch.tensor(found)], [torch.tensor(expected)]) == fault


SMALL_PLAN = throughput.Plan(
    shapes=((64, 256),),
    moe=throughput.Moe(count=4, rows=32, columns=128, a_token=2),
    few=(1, 2),
    many=(64, 128, 256, 512),
    ring_bytes=1 << 16,
)


def test_the_table_of_layers_says_from_where_decoding_is_faster():
    recorder = Recorder()

    def cost(call):
        tokens = call.arguments[7] if call.kernel == "multiply" else 0
        return {"decode": 200e-6}.get(call.kernel, 0.0) + tokens * 1e-6

    section = throughput.layers(Machine(recorder, cost), SMALL_PLAN)
    assert [(row["bits"], row["tokens"]) for row in section.rows][:3] == [(3, 1), (3, 2), (3, 64)]
    assert [row["decoded us"] is None for row in section.rows[:6]] == [True] * 2 + [False] * 4
    assert all("from 256 tokens on (the table says 256)" in n for n in section.notes[1:])
    # Words of 3 bits, norms of groups of 128, and a round of layers that a microsecond is added to.
    n_bytes, n_layers = 64 * 256 * 3 // 8 + 64 * 2 * 4, -(-(1 << 16) // 6656)
    rate = n_bytes / (1e-6 + 1e-6 / n_layers)
    assert section.rows[0]["GB/s"] == pytest.approx(rate / 1e9)
    assert section.rows[0]["% of copy"] == pytest.approx(100 * rate / (2 * (1 << 16) / 1e-6))
    assert {call.kernel for call in recorder.asked} >= {"multiply", "rotate", "decode"}


def test_of_experts_only_those_that_occur_are_counted():
    recorder = Recorder()
    section = throughput.experts(Machine(recorder), SMALL_PLAN)
    assert [row["experts read"] for row in section.rows if row["tokens"] == 1] == [2, 2]
    assert {row["tokens"] for row in section.rows} == {1, 2, 64, 128, 256, 512}
    assert len({len(line) for line in text(section).splitlines()[3:15]}) == 1


def test_what_a_round_reads_of_experts_is_most_of_the_ring():
    read = set()

    class Reads(Recorder):
        def launch(self, call):
            if call.kernel == "multiply":
                words, jobs = call.arguments[0], call.arguments[8]
                read.update((words.data_ptr(), layer) for layer, *_ in _with_tokens(jobs))

    ring = [throughput._random_tiles(Machine(None), (6,), (32, 128), 3) for _ in range(3)]
    dense = [torch.zeros(6, 32, 128, dtype=torch.bfloat16)]
    moe = throughput.Moe(count=6, rows=32, columns=128, a_token=2)
    throughput._expert_seconds(Machine(Reads()), ring, dense, torch.tensor([4, 1]), moe)
    assert len(read) == 3 * 6


def _with_tokens(jobs):
    return [job for job in jobs.tolist() if job[1] < job[2]]


SIZES = decoding.Sizes(128, 128, 128, layers=1, model_layers=4, experts=(2, 32, 128))


def test_a_stack_decodes_and_its_replay_is_compared(gpu):
    speeds, memory = decoding.measure(Machine(gpu), SIZES)
    assert [row["weights"] for row in speeds.rows] == ["bf16", "3 bits", "4 bits"]
    assert [row["replay"] for row in speeds.rows] == ["bit-equal"] * 3
    assert speeds.faults == []
    assert speeds.rows[1]["eager tokens/s"] == pytest.approx(1e6 / 4)
    packed = 5 * 128 * (48 + 4) / machine.MIB
    assert memory.rows[0] == {
        "what": "stack, 3 bits",
        "packed MiB": pytest.approx(packed),
        "stays MiB": pytest.approx(3 - packed),
        "peak MiB": pytest.approx(5 - packed),
    }


def test_a_replay_that_gives_other_bits_is_a_fault(gpu, monkeypatch):
    unchanged = lambda self, task: machine.Captured(lambda: None, task())  # noqa: E731
    monkeypatch.setattr(Machine, "capture", unchanged)
    speeds, _ = decoding.measure(Machine(gpu), SIZES)
    assert len(speeds.faults) == 3
    assert "FAULT: a replayed graph" in text(speeds)


def test_compilation_is_timed_without_and_with_the_disk_cache(tmp_path):
    compiler = pytest.importorskip("tq3.runtime.cuda.compiler", reason="needs cuda-bindings")
    folders = []

    def compile(kernel, instance, folder):
        folders.append((kernel, len(list(folder.iterdir()))))
        compiler.compiled(kernel, instance, "sm_90", folder)

    section = compilation.measure(compile, compilation.INSTANCES[-2:])
    assert folders == [("rotate", 0), ("rotate", 1), ("decode", 1), ("decode", 2)]
    assert [row["instance"].partition("<")[0] for row in section.rows] == [
        "rotate",
        "decode",
        "all",
    ]
    assert section.rows[2]["NVRTC ms"] > section.rows[2]["from the disk ms"] > 0


def test_a_section_is_a_table_to_paste():
    rows = [
        {"layer": "64x32", "tokens": 1, "us": 12.345, "decoded us": None},
        {"layer": "5120x17408", "tokens": 4096, "us": 1234.5, "decoded us": 0.01234},
    ]
    assert text(Section("Layers", rows, ["a note"], ["a fault"])) == (
        "\n## Layers\n"
        "layer       tokens     us  decoded us\n"
        "64x32            1   12.3\n"
        "5120x17408   4,096  1,234      0.0123\n"
        "a note\n"
        "FAULT: a fault"
    )


@pytest.fixture
def found_gpu(monkeypatch):
    monkeypatch.setattr(machine, "find", lambda: Machine(Recorder()))
    monkeypatch.setattr(machine, "versions", lambda: ["NVIDIA of tomorrow", "torch 9"])


def run(monkeypatch, *options):
    """The code it exits with."""
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *options])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    return ended.value.code


def test_without_a_gpu_a_sentence_says_so_and_the_code_is_2(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch) == 2
    assert "gpu_check: torch finds no GPU (torch " in capsys.readouterr().err


def test_a_part_that_fails_is_a_fault_and_the_others_are_reported(
    found_gpu, monkeypatch, capsys, tmp_path
):
    def fails():
        raise RuntimeError("CUDA out of memory")

    good = Section("Good", [{"what": "all", "cases": 3}], ["fine"], [])
    parts = {"first": fails, "second": lambda: [good]}
    monkeypatch.setattr(gpu_check, "parts", lambda gpu, is_quick: parts)
    out = tmp_path / "gpu.json"
    assert run(monkeypatch, "--out", str(out)) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("NVIDIA of tomorrow\ntorch 9\n")
    assert "FAULT: RuntimeError: CUDA out of memory" in printed
    report = json.loads(out.read_text())
    assert report["versions"] == ["NVIDIA of tomorrow", "torch 9"]
    assert report["sections"][1] == good._asdict()


def test_quick_compares_results_only(found_gpu, monkeypatch, capsys):
    chosen = [small_case("quantise")]
    monkeypatch.setattr(cases, "all_cases", lambda: chosen)
    monkeypatch.setattr(machine, "find", lambda: Machine(Device()))
    assert run(monkeypatch, "--quick") == 0
    printed = capsys.readouterr().out
    assert printed.count("## ") == 1
    assert "1 of 1 cases are equal: bit for bit" in printed
