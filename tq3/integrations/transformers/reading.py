"""Which layers a model reads the weights of, instead of calling them: told by its source."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache

from torch import nn

# What a packed weight answers as well: asking for it is no reading.
_ANSWERED = {"device", "dim", "dtype", "ndim", "numel", "requires_grad", "shape", "size"}


def is_only_read(owner: nn.Module, child: str) -> bool:
    """Whether the class of `owner` uses `self.child.weight` as a tensor, and never calls
    `self.child`: as Mamba does with its `dt_proj`, and WavLM's attention with its projections.

    A layer that it also calls is taken for one that is called: fused kernels for training on a GPU
    read what the usual path calls.
    """
    uses = [_uses(kind) for kind in type(owner).__mro__ if kind not in nn.Module.__mro__]
    return any(child in read for read, _ in uses) and not any(child in called for _, called in uses)


@cache
def _uses(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """The children of a module whose weights the methods of its class read, and those they call."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # without source, as in a notebook
        return frozenset(), frozenset()
    answered = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in _ANSWERED
    }
    read = {
        _child(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "weight" and node not in answered
    }
    called = {_child(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(filter(None, read)), frozenset(filter(None, called))


def _child(node: ast.expr) -> str | None:
    """x, of `self.x`."""
    if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "self":
        return node.attr
    return None
