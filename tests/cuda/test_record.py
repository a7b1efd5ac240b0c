"""The record of what the PTX interpreter passed is of these kernels, and tells others apart."""

from __future__ import annotations

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="needs cuda-bindings, nvidia-cuda-nvrtc")

from support.cuda import record
from support.cuda.instances import KERNELS

from tq3.runtime.cuda import compiler, source


def test_the_interpreter_has_passed_with_these_kernels():
    assert record.has_passed(record.digest()), (
        f"{record.RECORD} is of other kernels or another interpreter than these: run `make ptx`, "
        "which interprets all kernels and writes it anew"
    )


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_kernel_that_changed_is_not_recorded(kernel, monkeypatch):
    right = source.kernel
    monkeypatch.setattr(source, "kernel", lambda name: right(name) + " " * (name == kernel))
    assert not record.has_passed(record.digest())


def test_another_compiler_and_no_record_say_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(compiler, "version", lambda: (99, 0))
    assert not record.has_passed(record.nvrtc())
    monkeypatch.setattr(record, "RECORD", tmp_path / "none.txt")
    assert not record.has_passed(record.digest())
