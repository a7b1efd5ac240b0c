"""scripts/gpu_check.py without a GPU: its cases on the emulated device, its times made up."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import gpu_check
import pytest
import torch
from gpu import (
    cases,
    codes,
    exactness,
    experts,
    layers,
    model,
    peers,
    running,
    timing,
    tools,
)
from gpu.kinds import KINDS
from gpu.machine import Captured, Processor
from gpu.plan import SMALL, Model, Moe
from gpu.rows import Row, Skipped, append, read
from gpu.sections import INNER, SECTIONS, measure
from gpu.table import markdown
from support.cuda import through_driver
from support.cuda.emulated import SHARED_BYTES, Device
from support.cuda.instances import KERNELS, instances

from tq3.runtime.cuda import crossings, source
from tq3.runtime.cuda.calls import Call
from tq3.runtime.cuda.crossings import OTHERS, crossing_of
from tq3.runtime.cuda.ready import Asked

SMALL_CASES = {case.kind: case for case in cases.one_of_each_kind()}
# A real module of 3 bits, but without a device that it would be arranged for.
SIZES = Model(1, 128, 128, 2, 1, 64, 96, new_tokens=2, prompts=(3,))


def rows_of(found, gpu, seconds=60.0):
    """What is told of these cases, but for their beginnings."""
    told: list[Any] = []
    measure(found, gpu, time.monotonic() + seconds, told.append)
    for row in told:
        row.pop("s", None)
    return [row for row in told if "begins" not in row]


class Recorder(Asked):
    """Launches nothing, and keeps calls."""

    def __init__(self):
        super().__init__(1, SHARED_BYTES, crossing_of(OTHERS))
        self.calls = []

    def launch(self, call):
        self.calls.append(call)


class Timed(Processor):
    """A launch takes the time that `cost` says, all else a microsecond."""

    def __init__(self, cost=lambda call: 0.0):
        super().__init__(Recorder())
        self._cost = cost

    def seconds(self, task):
        before = len(self.on.calls)
        task()
        return 1e-6 + sum(map(self._cost, self.on.calls[before:]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_of_each_kind_is_equal_on_the_emulated_device(gpu, kind):
    row = exactness.compare(Processor(gpu), SMALL_CASES[kind])
    assert row == {"kind": kind, "equal": True}


def test_the_smoke_test_begins_with_the_machine_and_ends_with_a_graph(gpu):
    (first, task), *between, (last, replay) = exactness.smoke(Processor(gpu), SMALL)
    assert (first, last) == ("machine", "a layer's graph, replayed")
    assert [name for name, _ in between] == [name for name, _ in INNER["few"].cases(None, SMALL)]
    assert {"day", "torch", "commit", "GPU", "architecture"} <= task().keys()
    assert replay() == {"kind": "graph", "equal": True}


def test_a_wrong_kernel_is_a_fault_that_names_its_case_and_not_the_next():
    wrong = source.kernel("multiply").replace("0x58371f0aU", "0x59371f0aU")
    chosen = [SMALL_CASES["multiply"], SMALL_CASES["quantise"]]
    gpu = Processor(Device(multiply=wrong))
    first, second = rows_of(exactness._compared(gpu, chosen, None), gpu)
    assert first["case"].startswith("multiply 60: 70x379, 3 tokens, 3 bits, groups of 128")
    assert "of 210 values differ, (" in first["fault"]
    assert second["equal"]


def test_the_cases_ask_for_every_instance_and_those_that_serve_come_first():
    asked = codes.instances()
    assert {name for _, name in asked} == {name for of in KERNELS for name in instances(of)}
    served = [i for i, (_, name) in enumerate(asked) if "shared<3, 128, 8>" in name]
    assert served[0] < len(asked) / 4


def test_the_cases_have_the_shapes_that_kernels_find_hard():
    chosen = cases.all_cases()
    assert {case.kind for case in chosen} == set(KINDS) == set(SMALL_CASES)
    assert {case.tokens for case in chosen} >= {1, 4, 5, 16, 17, 33, 40}
    assert any(case.rows % 32 for case in chosen)
    assert {case.n % 8 for case in chosen} > {1, 3}
    special = [cases.draw(case).x[0] for case in chosen if case.kind == "quantise"]
    assert any(x.isnan().any() for x in special)
    assert any(x.isinf().any() for x in special)
    assert any(not x.any() for x in special)
    names = [name for of in ("serving", "others") for name, _ in SECTIONS[of].cases(None, LARGE)]
    assert sorted(names) == sorted(map(str, chosen))


LARGE = SMALL._replace(cases=None)


@pytest.mark.parametrize(
    ("found", "expected", "fault"),
    [
        ([1.0, torch.nan], [1.0, -torch.nan], ""),
        ([1.0, 0.0], [1.0, -0.0], "1 of 2 values differ, (1,): 0.0, not -0.0"),
        ([1.0], [1.0, 2.0], "(1,) of torch.float32, not (2,) of torch.float32"),
    ],
)
def test_results_are_compared_bit_for_bit(found, expected, fault):
    assert exactness.different([torch.tensor(found)], [torch.tensor(expected)]) == fault


@pytest.mark.parametrize("name", ["limits", "kernels", "crossings", "experts", "peers", "launches"])
def test_a_section_of_times_runs_without_a_fault(name):
    rows = rows_of((SECTIONS | INNER)[name].cases(Timed(), SMALL), Timed())
    assert rows
    assert not any("fault" in row for row in rows), rows
    assert len({row["case"] for row in rows}) == len(rows)


def test_each_kernel_of_a_layer_is_timed_by_itself_and_less_the_gap(monkeypatch):
    costs = {"rotate_quantise": 2e-6, "multiply_terms": 7e-6, "add_terms": 1e-6}
    gpu = Timed(lambda call: costs.get(call.instance.partition("<")[0], 0.0))
    gpu.on.processors = 1000
    plan = SMALL._replace(shapes=((64, 71 * 128),), few=(1,), ring_bytes=1 << 20)
    monkeypatch.setattr(gpu, "empty", lambda: gpu.on.calls.append(SMALL_CALL))
    costs["gap"] = 0.5e-6
    row = rows_of(layers.kernels(gpu, plan), gpu)[0]
    n_layers = -(-(1 << 20) // (64 * 71 * (48 + 4)))
    graph = 1e-6 / n_layers
    assert row["us"] == pytest.approx(1e6 * (10e-6 + graph))
    gap = 0.5e-6 + 1e-6 / timing.EMPTY_KERNELS
    for name, microseconds in row["alone us"].items():
        assert microseconds == pytest.approx(1e6 * (costs[name] + graph - gap))
    assert list(row["alone us"]) == ["rotate_quantise", "multiply_terms", "add_terms"]
    read = plan.ring_bytes / 1e-6
    assert row["% of read"] == pytest.approx(100 * 64 * 71 * 52 / (10e-6 + graph) / read)


SMALL_CALL = types.SimpleNamespace(instance="gap<>", kernel="gap")


def test_kernels_that_may_start_early_are_timed_in_turn():
    gpu = Timed()
    call = Call("split", "add_terms<>", (1, 1, 1), 256, (), early=True)
    timing.seconds_of_kernels(gpu, [call], lambda on, call: on.launch(call), 0.0)
    assert [call.early for call in gpu.on.calls] == [False] * 3


def test_the_crossing_is_where_the_sum_over_shapes_changes_sides():
    def row(shape, tokens, integers, small, large):
        decoded = {"16": small, "32": large}
        return {"shape": shape, "tokens": tokens, "integers us": integers, "decoded us": decoded}

    rows = [row("a", 64, 5, 9, 8), row("b", 64, 5, 9, 9), row("a", 128, 8, 9, 8)]
    rows += [row("b", 128, 8, 9, 8), row("a", 256, 9, 9, 8), row("b", 256, 7, 9, 7)]
    # Of one shape only: out of time.
    rows += [row("a", 512, 1, 9, 9)]
    found = layers.crossing_from(rows, "a GPU")
    assert found == crossings.Crossing(128, 32, "a GPU")
    assert layers.crossing_from(rows[4:6], "a GPU").most_tokens == 128
    ways = rows_of(layers.crossings(Timed(), SMALL), Timed())
    assert layers.crossing_from(ways, "").piece_weights in SMALL.pieces


def test_what_a_round_reads_of_experts_is_most_of_the_ring():
    read: set[tuple[int, int]] = set()
    moe = Moe(experts=6, rows=32, columns=128, a_token=2)
    gpu = Timed()

    def launch(call):
        if call.kernel == "multiply":
            words, jobs = call.arguments[0], call.arguments[8]
            read.update((words.data_ptr(), job[0]) for job in jobs.tolist() if job[1] < job[2])

    gpu.on.launch = launch
    ring = timing.tiles_of(gpu, (6,), (32, 128), 3, 3 * 6 * 32 * 52)
    dense = [torch.zeros(6, 32, 128, dtype=torch.bfloat16)]
    experts.seconds(gpu, ring, dense, torch.tensor([4, 1]), moe)
    assert len(read) == len(ring) * 6


def test_a_model_is_measured_packed_and_dense():
    gpu = Processor(Recorder())
    rows = {row["case"]: row for row in rows_of(model.model(gpu, SMALL), gpu)}
    assert not any("fault" in row or "skipped" in row for row in rows.values()), rows
    for width in ("3 bits", "bf16", "4 bits"):
        assert rows[f"{width}, a graph of one step"]["replay"] == "bit-equal"
        assert rows[f"{width}, eager generate"]["tokens/s"] > 0
        assert rows[f"{width}, a prompt of 3 tokens"]["tokens/s"] > 0
    n_weights = 128 * (128 + 2 * 64 + 128 + 3 * 128)
    packed, dense = (rows[f"{width}, loading"]["GB"] for width in ("3 bits", "bf16"))
    assert dense - packed == pytest.approx(n_weights * (2 - 52 / 128) / 1e9)


def test_a_replay_that_gives_other_bits_is_a_fault(monkeypatch):
    monkeypatch.setattr(Processor, "capture", lambda _, task: Captured(lambda: None, task()))
    gpu = Processor(Recorder())
    rows = rows_of(model.model(gpu, SMALL), gpu)
    assert sum("a replay gives other logits" in row.get("fault", "") for row in rows) == 3


def test_others_kernels_are_called_where_they_are(monkeypatch):
    class HummingLayer(torch.nn.Module):
        width = ""

        def __init__(self, rows, columns, options, torch_dtype):
            super().__init__()
            assert options == {"b_dtype": HummingLayer.width, "weight_scale_group_size": 128}
            self.weight_scale = torch.ones(rows, columns // 128)

        def load_from_unquantized(self, weight):
            self.weight = torch.nn.Parameter(weight)

        def transform(self):
            pass

        def forward(self, x):
            return x @ self.weight.T

    monkeypatch.setitem(sys.modules, "humming", types.ModuleType("humming"))
    found = types.SimpleNamespace(HummingLayer=HummingLayer)
    monkeypatch.setitem(sys.modules, "humming.layer", found)
    convert = lambda codes, tiles: codes.view(-1, 8)  # noqa: E731
    monkeypatch.setattr(torch, "_convert_weight_to_int4pack", convert)
    monkeypatch.setattr(torch, "_weight_int4pack_mm", lambda x, weights, group, scales: x)
    for HummingLayer.width in ("uint3", "uint4"):
        makes = peers.torch_int4, lambda *given: peers.humming(HummingLayer.width, *given)
        for make in makes:
            row = peers._measure(Timed(), timing.ceilings(Timed(), 64), SMALL, make, (64, 256))
            assert row["us"].keys() == {"1 tokens", "5 tokens"}


def script(folder: Path, name: str, text: str) -> None:
    """A tool that prints, and ends."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o700)


@pytest.mark.parametrize(
    ("ends", "summary"),
    [
        ("echo '========= ERROR SUMMARY: 0 errors'", "ERROR SUMMARY: 0 errors"),
        ("echo '========= Invalid __global__ read'; exit 9", AssertionError("Invalid __global__")),
        ("echo 'not for this driver' >&2; exit 1", Skipped("memcheck ended with code 1: not for")),
    ],
)
def test_a_sanitizer_finds_nothing_or_an_error_or_does_not_work(
    tmp_path, monkeypatch, ends, summary
):
    checks = '[ "$PYTORCH_NO_CUDA_MEMORY_CACHING $7 $8" = "1 the command" ] || exit 3'
    script(tmp_path / "bin", "compute-sanitizer", f"{checks}\n{ends}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    run = lambda: tools.sanitized("memcheck", ["the", "command"])  # noqa: E731
    if isinstance(summary, str):
        assert run() == {"summary": summary}
        return
    with pytest.raises(type(summary), match=str(summary)):
        run()


def test_ncu_counts_by_kernel(tmp_path, monkeypatch):
    lines = ['"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"']
    for i, kernel in enumerate(("void multiply<3, 128>(int4 const*)", "multiply_terms")):
        lines += [
            f'"{i}","{kernel}","gpu__time_duration.sum","ns","{i + 1},500"',
            f'"{i}","{kernel}","lts__t_bytes.sum","byte","7,000,000"',
        ]
    text = "\n".join(["==PROF== Connected", *lines])
    script(tmp_path, "ncu", f"cat <<'END'\n{text}\nEND")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    kernels = ("0: void multiply", "1: multiply_terms")
    assert tools.profiled([]) == {
        "us": dict(zip(kernels, (1.5, 2.5), strict=True)),
        "MB of L2": dict.fromkeys(kernels, 7.0),
    }
    script(tmp_path, "ncu", "echo ERR_NVGPUCTRPERM; exit 1")
    with pytest.raises(Skipped, match="code 1: ERR_NVGPUCTRPERM"):
        tools.profiled([])


def test_tools_that_are_not_there_are_skipped(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(tools, "USUAL", "/nowhere")
    for name in ("sanitizer", "profile"):
        for row in rows_of(SECTIONS[name].cases(None, SMALL, ["true"]), Timed()):
            assert "is neither in the PATH nor in /nowhere" in row["skipped"]


def raises(error):
    def task():
        raise error

    return task


def test_an_error_of_cuda_ends_its_section_and_no_other_does():
    def found():
        yield "a", raises(torch.OutOfMemoryError("CUDA out of memory"))
        yield "b", raises(ValueError("long\nlonger"))
        yield "c", raises(Skipped("not here"))
        yield "d", raises(RuntimeError("CUDA error: an illegal memory access was encountered"))
        yield "e", dict

    rows = rows_of(found(), Timed())
    assert [row["case"] for row in rows] == ["a", "b", "c", "d"]
    assert "does not fit" in rows[0]["skipped"]
    assert rows[1]["fault"] == "ValueError: long"
    assert rows[2]["skipped"] == "not here"
    assert "illegal memory access" in rows[3]["fault"]


def test_a_section_ends_between_two_cases_when_its_time_is_over():
    (row,) = rows_of(iter([("a", dict)]), Timed(), seconds=-1)
    assert "out of time" in row["skipped"]

    def breaks():
        yield "a", dict
        raise ValueError("of the section")

    assert rows_of(breaks(), Timed())[1] == {
        "case": "after a",
        "fault": "ValueError: of the section",
    }


TELL = "import json, os, sys, time; tell = lambda **row: print(json.dumps(row), flush=True); "


@pytest.mark.parametrize(
    ("program", "last"),
    [
        ("", None),
        ("os.abort()", "ended with code -6: a warning"),
        ("time.sleep(60)", "killed after 1 s"),
    ],
)
def test_the_case_at_which_a_process_ends_is_named(program, last, capsys):
    said = "tell(case='a', us=1); print('a warning', flush=True); tell(begins='b'); "
    found = list(running.rows_of([sys.executable, "-c", TELL + said + program], 1.0))
    assert found[0] == {"case": "a", "us": 1}
    assert capsys.readouterr().out == "a warning\n"
    assert found[1:] == ([{"case": "b", "fault": last}] if last else [])


def run(monkeypatch, *options):
    """The code it exits with."""
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    return ended.value.code


def children(monkeypatch, **programs):
    """Programs in the place of sections."""

    def command(name, options, seconds):
        return [sys.executable, "-c", TELL + programs[name]]

    monkeypatch.setattr(gpu_check, "_command", command)


def test_a_section_that_fails_is_a_fault_and_the_others_are_measured(monkeypatch, capsys, tmp_path):
    children(monkeypatch, smoke="tell(begins='x'); os.abort()", limits="tell(case='a', us=1.25)")
    out = tmp_path / "found.jsonl"
    append(out, {"section": "limits", "case": "a", "us": 7})
    with out.open("a") as file:
        file.write('{"section": "lim')
    assert run(monkeypatch, "--only", "smoke", "limits", "--out", out) == 1
    assert "limits: a: us 1.25" in capsys.readouterr().out
    limits, smoke = read(out)
    assert limits == {"section": "limits", "case": "a", "us": 1.25}
    assert smoke["case"] == "x"
    assert "code -6" in smoke["fault"]


def test_sections_that_no_time_is_left_for_are_skipped(monkeypatch, tmp_path):
    out = tmp_path / "found.jsonl"
    assert run(monkeypatch, "--seconds", 3, "--out", out, "--skip", "limits") == 0
    assert {row["skipped"] for row in read(out)} == {"out of time"}
    assert {row["section"] for row in read(out)} == SECTIONS.keys() - {"limits"}


def test_without_a_gpu_a_sentence_says_so_and_the_code_is_2(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(monkeypatch, "--section", "smoke") == 2
    said = capsys.readouterr().out.strip()
    assert said.startswith("gpu_check: torch finds no GPU (torch ")
    children(monkeypatch, smoke=f"print({said!r}); sys.exit(2)")
    assert run(monkeypatch, "--only", "smoke", "--out", tmp_path / "none") == 2
    assert capsys.readouterr().out.strip() == said
    assert not (tmp_path / "none").exists()


def test_the_measured_crossing_is_written_with_the_gpu_and_the_day(monkeypatch, capsys, tmp_path):
    rows: list[Row] = [
        {"section": "crossings", "case": f"x, {tokens}", "tokens": tokens, "shape": "x"}
        | {"integers us": tokens, "decoded us": {"33554432": 100}}
        for tokens in (64, 96, 128)
    ]
    facts: Row = {"section": "smoke", "case": "machine", "GPU": "NVIDIA H200", "day": "1 Dec 2026"}
    file, written = tmp_path / "found.jsonl", []
    for row in (facts | {"architecture": "sm_90"}, *rows):
        append(file, row)
    monkeypatch.setattr(crossings, "write", lambda *row: written.append(row))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--crossings", str(file)])
    gpu_check.main()
    expected = crossings.Crossing(96, 1 << 25, "NVIDIA H200, 1 Dec 2026")
    assert written == [("sm_90", expected)]
    with pytest.raises(SystemExit, match="no rows of the sections smoke and crossings"):
        gpu_check.write_crossing(rows)


def test_rows_are_tables_in_markdown():
    rows: list[Row] = [
        {"section": "serving", "case": "a", "kind": "multiply", "equal": True},
        {"section": "serving", "case": "b", "kind": "multiply", "equal": True},
        {"section": "serving", "case": "c", "fault": "CUDA error: x"},
        {
            "section": "kernels",
            "case": "64x32",
            "us": 1234.5,
            "alone us": {"rotate": 0.01234},
            "n": 1,
        },
        {"section": "peers", "case": "Humming", "skipped": "not here"},
    ]
    assert markdown(rows) == (
        "**Results of what models are served with**\n\n"
        "| case | equal |\n| --- | --- |\n| multiply | 2 |\n\n"
        "**Layers, groups of 128, bfloat16**\n\n"
        "| case | us | alone us | n |\n| --- | --- | --- | --- |\n"
        "| 64x32 | 1,234 | rotate: 0.0123 | 1 |\n\n"
        "**What others' kernels take**\n\nnothing was measured\n\n"
        "* fault: serving, c: CUDA error: x\n\n"
        "* skipped: peers, Humming: not here\n"
    )


def test_carried_codes_are_read_whoever_may_write_to_their_folder(tmp_path, monkeypatch):
    compiler = pytest.importorskip("tq3.runtime.cuda.compiler", reason="needs cuda-bindings")
    instance = "split", "add_terms<Dtype::kF32>"
    carried, mine = tmp_path / "carried", tmp_path / "mine"
    monkeypatch.setattr(codes, "instances", lambda: [instance])
    (line,) = codes.compile_all("sm_90", carried)
    assert line.startswith("add_terms<Dtype::kF32>: ")
    folder = carried / codes.BELOW
    folder.chmod(0o777)
    (file,) = folder.iterdir()
    assert compiler._read(file) is None
    codes.adopt(carried, mine)
    monkeypatch.setenv("XDG_CACHE_HOME", str(mine))
    assert compiler._read(compiler.default_cache() / file.name) is not None
    assert stat.S_IMODE((mine / codes.BELOW).stat().st_mode) == 0o700
    with pytest.raises(SystemExit, match="--compile makes them"):
        codes.adopt(tmp_path, tmp_path / "other")


# Which section runs, with the package's Device in the place of an emulated one.
BY_DRIVER = """
import time
device = through_driver.device()
from gpu.machine import Processor
from gpu.plan import SMALL
from gpu.sections import INNER, SECTIONS, measure
gpu = Processor(device)
for name in ("kernels", "crossings", "experts", "launches"):
    cases = (SECTIONS | INNER)[name].cases(gpu, SMALL)
    measure(cases, gpu, time.monotonic() + 100, lambda row: "fault" in row and print(row))
"""


def test_what_sections_launch_is_taken_by_the_driver(tmp_path):
    pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")
    found = through_driver.run(BY_DRIVER, tmp_path)
    assert found.printed == []
    assert found.given == found.asked
    launched = " ".join(launch for launch, *_ in found.given)
    for kernel in ("rotate_quantise", "multiply", "share", "rotate", "decode"):
        assert kernel in launched


def test_a_rehearsal_runs_in_processes_of_its_own(tmp_path):
    out = tmp_path / "found.jsonl"
    command = [sys.executable, gpu_check.__file__, "--rehearse", "--only", "limits", "--out", out]
    subprocess.run(command, check=True, capture_output=True)
    (row,) = read(out)
    assert row["copy GB/s"] > 0
    assert json.loads(out.read_text()) == row
