"""Weights that are held decoded: their values, and when the codes are still those of them."""

from __future__ import annotations

import pytest
import torch
from support.runtime.modules import packed_weight, restored
from torch import nn

from tq3.runtime.held import describes, hold_decoded


def held(dtype=torch.bfloat16):
    owner = nn.Module()
    owner.weight = packed_weight((24, 200), dtype=dtype)
    return owner, hold_decoded(owner, "weight")


def test_a_decoded_weight_is_that_of_the_codec_and_an_ordinary_parameter():
    owner, codes = held()
    assert torch.equal(owner.weight, restored(codes).to(torch.bfloat16))
    assert set(owner.state_dict()) == {"weight"}
    owner.load_state_dict(owner.state_dict())
    assert describes(codes, owner.weight)


def test_on_meta_it_stays_on_meta():
    owner = nn.Module()
    owner.weight = packed_weight((24, 200), dtype=torch.bfloat16).to("meta")
    hold_decoded(owner, "weight")
    assert (owner.weight.is_meta, owner.weight.dtype) == (True, torch.bfloat16)


CASTS = {
    "none": (),
    "wider": (torch.float32,),
    "another": (torch.float16,),
    "and back": (torch.float32, torch.bfloat16),
    "through two": (torch.float16, torch.bfloat16, torch.float32),
    "to and fro": (torch.float16, torch.float32, torch.bfloat16, torch.float16),
}


@pytest.mark.parametrize("loaded", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("casts", CASTS.values(), ids=CASTS)
def test_a_cast_is_no_edit(loaded, casts):
    owner, codes = held(loaded)
    for dtype in casts:
        owner.to(dtype)
    assert describes(codes, owner.weight)


def one_bit(owner):
    owner.weight.view(torch.int16)[3, 5] ^= 1


def new_data(owner):
    owner.weight.data = owner.weight.data * 1.5


def another(owner):
    owner.weight = nn.Parameter(torch.zeros(24, 200, dtype=torch.bfloat16))


def fewer_rows(owner):
    owner.weight = nn.Parameter(owner.weight[:12].detach())


def a_step(owner):
    owner.requires_grad_(True)
    owner.weight.sum().backward()
    torch.optim.SGD(owner.parameters(), lr=1e-2).step()


@pytest.mark.parametrize("edit", [one_bit, new_data, another, fewer_rows, a_step])
def test_an_edit_is_seen_however_it_was_made(edit):
    owner, codes = held()
    edit(owner)
    assert not describes(codes, owner.weight)
