"""What equalized columns do to a tensor: whose factors multiply its columns or divide its rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from tq3.equalization.channels import text_model
from tq3.equalization.layers import LayerTensors, Mlp, TextModel, Value
from tq3.errors import BadInput
from tq3.format.checkpoint import Checkpoint, Located
from tq3.format.config import FILE_NAME
from tq3.format.equalization import Factors
from tq3.format.header import FLOATS

# Where recorded factors are not for a source.
FIX = "name the checkpoint that it was made from"


@dataclass(frozen=True, slots=True)
class Link:
    """Channels between what puts them out and what takes them in, named after one of these.

    stack: experts that have such channels each, else 1; size: channels of one of them
    """

    name: str
    stack: int
    size: int


@dataclass(frozen=True, slots=True)
class Scaling:
    """One tensor as (stack, rows, columns): vectors are columns, only experts are stacks.

    columns: factors multiply them; each `run` of factors stands `repeats` times, for heads of
    queries that share values
    rows: factors divide as many of them, the last ones, or the last ones of each of `row_runs`
    offset: what is added to a stored value to get the one that is scaled
    """

    shape: tuple[int, int, int]
    columns: Link | None = None
    run: int = 0
    repeats: int = 1
    rows: Link | None = None
    row_runs: int = 1
    offset: float = 0.0

    @property
    def links(self) -> tuple[Link, ...]:
        return tuple(link for link in (self.columns, self.rows) if link)


@dataclass(frozen=True, slots=True)
class Scalings:
    """model: the tensors by what they do; by_name: each tensor that is scaled, and how."""

    model: TextModel
    by_name: Mapping[str, Scaling]

    @property
    def links(self) -> dict[str, Link]:
        return {link.name: link for each in self.by_name.values() for link in each.links}

    def links_into(self, names: Collection[str]) -> frozenset[str]:
        """Names of the links that one of these tensors takes in."""
        taken = (each.columns for name, each in self.by_name.items() if name in names)
        return frozenset(link.name for link in taken if link)

    def only(self, links: Collection[str]) -> dict[str, Scaling]:
        """What these links alone do to each tensor that they scale."""

        def kept(link: Link | None) -> Link | None:
            return link if link and link.name in links else None

        found = {
            name: replace(each, columns=kept(each.columns), rows=kept(each.rows))
            for name, each in self.by_name.items()
        }
        return {name: each for name, each in found.items() if each.links}

    def check(self, factors: Factors) -> None:
        """Raise BadInput for recorded factors that are not those of these channels."""
        links = self.links
        for name, exponents in sorted(factors.items()):
            wanted = links[name].stack * links[name].size if name in links else 0
            if len(exponents) != wanted:
                raise BadInput(
                    "tq3.equalization does not fit the source",
                    file=FILE_NAME,
                    tensor=name,
                    found=f"{len(exponents)} factors",
                    expected=wanted,
                    fix=FIX,
                )


def plan_scalings(checkpoint: Checkpoint) -> Scalings:
    """What scales each tensor of a checkpoint's text model, from headers alone.

    Raises UsageError for an unknown architecture, BadInput where tensors don't fit together.
    """
    model = text_model(checkpoint)
    plan = _Planner(model, {tensor.info.name: tensor for tensor in checkpoint.tensors})
    for layer in model.layers:
        plan.add(layer)
    return Scalings(model, plan.found)


class _Planner:
    """Collects what happens to each tensor; every width is compared with its link's."""

    def __init__(self, model: TextModel, tensors: Mapping[str, Located]) -> None:
        self._model = model
        self._tensors = tensors
        self._hidden = self._width(model.embeddings)
        self.found: dict[str, Scaling] = {}

    def add(self, layer: LayerTensors) -> None:
        """Add the scalings of all tensors of a layer."""
        mlps = [mlp for block in layer.blocks for mlp in block.mlps]
        self._check(layer, mlps)
        self._norm(layer.norm, layer.readers)
        for latent in layer.latents:
            self._norm(latent.norm, latent.readers)
        for block in layer.blocks:
            self._norm(block.norm, block.readers)
        if layer.value:
            self._heads(layer.value, layer.out)
        for mlp in mlps:
            self._mlp(mlp)

    def _check(self, layer: LayerTensors, mlps: Sequence[Mlp]) -> None:
        """Whatever the widths of links say nothing of."""
        norms = [layer.norm, *(layer.after or ())]
        norms += [norm for block in layer.blocks for norm in (block.norm, block.after)]
        for name in filter(None, norms):
            self._check_vector(name, self._hidden)
        self._check_rows(layer.out, self._hidden)
        for mlp in mlps:
            self._check_rows(mlp.down, self._hidden, self._shape(mlp.down)[0])
            stack, n_rows, _ = self._shape(mlp.up)
            self._check_rows(mlp.gate, n_rows, stack)
        read_by = (latent.readers for latent in layer.latents)
        for name in (*layer.readers, *chain.from_iterable(read_by)):
            self._check_rows(name, self._shape(name)[1])  # a matrix, not several
        for latent in layer.latents:
            n_rows, size = (self._shape(name)[1] for name in (latent.source, latent.norm))
            self._check_vector(latent.norm, size)
            if n_rows < size:
                raise self._misfit(latent.source, f"{n_rows} rows", f"{size} for {latent.norm}")
        if layer.scalar:
            self._check_vector(layer.scalar, 1)

    def _norm(self, norm: str | None, readers: tuple[str, ...]) -> None:
        if norm is None:  # nothing could be divided
            for reader in readers:
                if (columns := self._shape(reader)[2]) != self._hidden:
                    raise self._misfit(reader, f"{columns} columns", f"{self._hidden}")
            return
        stack, size, _ = self._shape(norm)
        link = Link(norm, stack, size)
        offset = self._model.family.offset
        self.found[norm] = Scaling((stack, size, 1), rows=link, offset=offset)
        self._bias(norm, link, size)
        for reader in readers:
            self._read(reader, link)

    def _heads(self, value: Value, out: str) -> None:
        _, _, n_columns = self._shape(out)
        n_rows = self._shape(value.matrix)[1]
        n_values = n_rows if value.size is None else value.size
        run = n_values // value.heads if value.heads > 1 else self._model.head_dim
        fits = run and n_values and not n_values % run and not n_columns % n_values
        fits = fits and not n_rows % value.heads and n_rows >= n_values
        if not fits or (value.heads > 1 and n_columns != n_values):
            raise self._misfit(out, f"{n_columns} columns", f"heads of {run}, values {n_values}")
        link = Link(out, 1, n_values)
        self._read(out, link, run or 0, n_columns // n_values)
        self._feed(value.matrix, link, n_rows, value.heads)

    def _mlp(self, mlp: Mlp) -> None:
        stack, _, size = self._shape(mlp.down)
        link = Link(mlp.down, stack, size)
        self._read(mlp.down, link)
        self._feed(mlp.up, link, size * (2 if mlp.up == mlp.gate else 1))

    def _read(self, name: str, link: Link, run: int = 0, repeats: int = 1) -> None:
        shape = self._shape(name)
        if shape[2] != link.size * repeats:
            raise self._misfit(name, f"{shape[2]} columns", f"{link.size} from {link.name}")
        scaling = Scaling(shape, columns=link, run=run or link.size, repeats=repeats)
        self.found[name] = scaling

    def _feed(self, name: str, link: Link, n_rows: int, row_runs: int = 1) -> None:
        shape = self._shape(name)
        if shape[:2] != (link.stack, n_rows):
            raise self._misfit(name, f"{shape[1]} rows", f"{n_rows} for {link.name}")
        read = self.found.get(name, Scaling(shape))
        self.found[name] = replace(read, rows=link, row_runs=row_runs)
        self._bias(name, link, n_rows, row_runs)

    def _bias(self, name: str, link: Link, n_rows: int, row_runs: int = 1) -> None:
        bias = name.removesuffix(".weight") + ".bias"
        if bias in self._tensors:
            self._check_vector(bias, n_rows)
            shape = self._shape(bias)
            self.found[bias] = Scaling(shape, rows=link, row_runs=row_runs)

    def _width(self, table: str) -> int:
        if len(self._tensors[table].info.shape) != 2:
            raise self._misfit(table, f"{list(self._tensors[table].info.shape)}", "a matrix")
        return self._shape(table)[2]

    def _check_vector(self, name: str, size: int) -> None:
        if self._shape(name) != (1, size, 1):
            raise self._misfit(name, f"{list(self._tensors[name].info.shape)}", f"[{size}]")

    def _check_rows(self, name: str, n_rows: int, stack: int = 1) -> None:
        found, expected = self._shape(name)[:2], (stack, n_rows)
        if found != expected:
            one = found[0] == expected[0]
            texts = (f"{n} rows" if one else f"{s} x {n} rows" for s, n in (found, expected))
            raise self._misfit(name, *texts)

    def _shape(self, name: str) -> tuple[int, int, int]:
        info = self._tensors[name].info
        if info.dtype not in FLOATS or not 1 <= len(info.shape) <= 3 or not info.n_elements:
            raise self._misfit(name, f"{info.dtype} {list(info.shape)}", "a matrix of floats")
        if len(info.shape) == 1:
            return 1, info.shape[0], 1
        return (*((1,) * (3 - len(info.shape))), *info.shape)  # type: ignore[return-value]

    def _misfit(self, name: str, found: str, expected: str) -> BadInput:
        return BadInput(
            "its shape does not fit",
            file=self._tensors[name].file,
            tensor=name,
            found=found,
            expected=expected,
        )
