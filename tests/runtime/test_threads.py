"""Several callers at once, forks, and torch without a pool to lend."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support.runtime.layers import activations, assert_same, layer

from tq3.runtime import reference

threads = pytest.importorskip("tq3.runtime.threads", reason="installed without kernels")
native = pytest.importorskip("tq3.runtime.native")

X, LAYER = activations(2, 1280), layer(1111, 10)


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def product():
    out = torch.empty(2, 1111)
    native.get_kernels().linear(X, *LAYER, 3, 128, 128, out)
    return out


def test_many_python_threads_at_once_each_get_their_product():
    expected = reference.linear(X, *LAYER, 3, 128)
    with ThreadPoolExecutor(8) as pool:
        for out in pool.map(lambda _: product(), range(64)):
            assert_same(out, expected)


def test_without_torchs_pool_threads_are_started_for_the_call(monkeypatch):
    monkeypatch.setattr(threads, "_torch_parallel_for", lambda: 0)
    threads._team.cache_clear()
    try:
        assert_same(product(), reference.linear(X, *LAYER, 3, 128))
    finally:
        threads._team.cache_clear()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_computes_although_the_pools_threads_are_gone():
    expected = product()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if torch.equal(product(), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert_same(product(), expected)
