"""A word on each tensor from what its blocks show: as the format has it, unusual, or at fault."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace

from tq3.codec.expected import error_limit, expected_error, group_error_limit
from tq3.format.header import FLOATS
from tq3.format.layout import GroupLayout
from tq3.format.recipe import CALIBRATED
from tq3.plan.plan import Task
from tq3.plan.precision import dtype_where_kept
from tq3.verification.checks import Comparison, Fault
from tq3.verification.comparing import HAIR, Coded, Compared
from tq3.verification.kept import NOWHERE, Kept


class Judge:
    """Hears of every block of `tasks`, and of those of the suspects a second time.

    source_dtype: `plan.precision.main_dtype` of the source
    is_saved_anew: whether a host wrote the checkpoint, in its model's dtype, of what it had loaded
    """

    def __init__(
        self,
        tasks: Iterable[Task],
        source_dtype: str | None,
        *,
        is_saved_anew: bool = False,
    ) -> None:
        self.tasks = tuple(tasks)
        self._source_dtype = source_dtype
        self._is_saved_anew = is_saved_anew
        self._blocks: dict[str, list[Compared]] = defaultdict(list)
        self._second: dict[str, list[Compared]] = defaultdict(list)

    def add(self, compared: Compared) -> None:
        """Add what a block shows."""
        self._blocks[compared.block.task.name].append(compared)

    def add_again(self, compared: Compared) -> None:
        """Add a block whose groups were encoded again, or whose kept values were F16 first."""
        self._second[compared.block.task.name].append(compared)

    def suspects(self) -> list[Task]:
        """Tensors with an error beyond the limit that no single group explains, and kept ones with
        other values than the source's that may have been rounded twice.
        """
        return [task for task in self.tasks if self._is_suspect(task)]

    def comparisons(self) -> Iterator[Comparison]:
        """A line for every tensor, in the order of the source."""
        for task in self.tasks:
            if task.layout:
                yield self._line(task, task.layout, self._coded(task))
            else:
                yield _kept_line(task, self._kept(task))

    def faults(self) -> Iterator[Fault]:
        """The tensors that are worse than the format makes them, as faults."""
        for task, line in zip(self.tasks, self.comparisons(), strict=True):
            if task.layout:
                yield from self._coded_faults(task, task.layout, line)
            elif not line.exact:
                yield from self._kept_faults(task, self._kept(task))

    def notices(self) -> Iterator[str]:
        """Tensors whose error is large and yet what the format makes of them."""
        for task, line in zip(self.tasks, self.comparisons(), strict=True):
            if line.recoded_error is not None and not _is_worse(line):
                yield (
                    f"{task.name}: error {line.error:.4g} where {line.limit:.4g} was expected at "
                    "most: an unusual distribution, coded as the format codes it"
                )

    def _line(self, task: Task, layout: GroupLayout, coded: Coded) -> Comparison:
        energies = math.sqrt(coded.energy) * math.sqrt(coded.decoded)
        together = (coded.energy + coded.decoded - coded.error) / 2
        nowhere = coded.worst_group == NOWHERE
        row, group = divmod(coded.worst_group, layout.groups_per_row or 1)
        line = Comparison(
            task.name,
            layout.bits,
            layout.shape,
            error=_share(coded.error, coded.energy),
            cosine=together / energies if energies else None,
            expected=expected_error(task.scale, layout.bits, layout.group, layout.code),
            limit=_limit(task, layout, coded),
            worst_group_error=None if nowhere else coded.worst_error,
            worst_row=None if nowhere else row,
            worst_group=None if nowhere else group,
        )
        again = self._second.get(task.name)
        if not again:
            return line
        second = _total(again)
        return replace(line, recoded_error=_share(second.recoded, second.energy))

    def _coded_faults(self, task: Task, layout: GroupLayout, line: Comparison) -> Iterator[Fault]:
        coded = self._coded(task)
        file = task.sources[0].file
        if coded.n_worse:
            row, group = divmod(coded.first_worse, layout.groups_per_row)
            number = f"{coded.n_worse} of {layout.rows * layout.groups_per_row} groups are worse"
            first = f"the first is group {group} of row {row}"
            in_group = f"{number} than the format makes them; {first}"
            if _is_beyond(task, layout, coded):
                yield _error_fault(file, line, in_group)
            else:
                calibrated, code = task.scale == CALIBRATED, layout.code
                limit = group_error_limit(layout.bits, layout.group, code, calibrated=calibrated)
                expected = f"at most {limit:.4g}"
                worst = f"error {line.worst_group_error:.4g} in the worst"
                yield Fault("TQ506", in_group, file, task.name, worst, expected)
        elif line.recoded_error is not None and _is_worse(line):
            again = f"encoding the source again gives {line.recoded_error:.4g}"
            yield _error_fault(file, line, again)
        elif task.scale == CALIBRATED and _is_beyond(task, layout, coded):
            yield _error_fault(
                file, line, "calibrated codes lose more of the weights, but not so much"
            )

    def _kept_faults(self, task: Task, kept: Kept) -> Iterator[Fault]:
        tensor, source = task.sources[0].info, task.sources[-1].nominal
        if not _is_right(kept):
            yield _kept_fault(task, kept)
            return
        wanted = dtype_where_kept(source, self._source_dtype)
        if task.sources[-1].pieces and tensor.dtype == source.dtype:
            return  # decoded, and as it would be kept for its values
        is_as_f16 = task.name in self._second and not kept.n_twice
        if tensor.dtype != wanted and not is_as_f16:
            as_what = "as it is" if wanted == source.dtype else f"as {wanted}"
            yield _rounded_fault(task, kept, f"which the format stores {as_what}")
        elif kept.first_lost != NOWHERE:
            yield _rounded_fault(task, kept, "which F16 loses too many of")

    def _is_suspect(self, task: Task) -> bool:
        if task.layout:
            coded = self._coded(task)
            can_be_coded_again = task.scale != CALIBRATED  # their moments are not here
            beyond = _is_beyond(task, task.layout, coded)
            return can_be_coded_again and beyond and not coded.n_worse
        source = task.sources[-1].nominal
        is_f16 = dtype_where_kept(source, self._source_dtype) == "F16"
        return self._is_saved_anew and is_f16 and not _is_right(self._kept(task))

    def _coded(self, task: Task) -> Coded:
        return _total(self._blocks[task.name])

    def _kept(self, task: Task) -> Kept:
        """Judge a kept tensor by the source's values, or by those in F16 if it has these."""
        once, by_f16 = (
            sum((each.kept for each in blocks.get(task.name, ()) if each.kept), Kept())
            for blocks in (self._blocks, self._second)
        )
        return by_f16 if task.name in self._second and _is_right(by_f16) else once


def _is_beyond(task: Task, layout: GroupLayout, coded: Coded) -> bool:
    return not _share(coded.error, coded.energy) <= _limit(task, layout, coded)


def _limit(task: Task, layout: GroupLayout, coded: Coded) -> float:
    """Groups of little energy do not count: their errors hardly move the tensor's."""
    n_groups = coded.energy**2 / coded.energy_squared if coded.energy_squared else 1.0
    return error_limit(task.scale, layout.bits, layout.group, n_groups, layout.code)


def _is_right(kept: Kept) -> bool:
    return not (kept.n_different or kept.n_infinite)


def _total(blocks: list[Compared]) -> Coded:
    """Added in the order of the tensor: the number of threads does not show in the last digit."""
    ordered = sorted(blocks, key=lambda each: each.block.first)
    return sum((each.coded for each in ordered if each.coded), Coded())


def _share(error: float, energy: float) -> float:
    if not error:
        return 0.0
    return error / energy if energy else math.inf


def _is_worse(line: Comparison) -> bool:
    assert line.error is not None and line.recoded_error is not None
    return not line.error <= line.recoded_error * (1 + HAIR)


def _error_fault(file: str, line: Comparison, message: str) -> Fault:
    found = f"error {line.error:.4g}"
    return Fault("TQ505", message, file, line.tensor, found, f"at most {line.limit:.4g}")


def _kept_line(task: Task, kept: Kept) -> Comparison:
    return Comparison(
        task.name,
        None,
        task.sources[0].info.shape,
        exact=kept.is_exact,
        stored=task.sources[0].info.dtype,
        n_rounded=kept.n_rounded,
        largest_change=kept.largest_change,
        largest_relative_change=kept.largest_share,
    )


def _rounded_fault(task: Task, kept: Kept, why: str) -> Fault:
    tensor, source = (each.info for each in task.sources)
    message = (
        f"{kept.n_rounded} of {task.units} values are rounded to {tensor.dtype}, by up to "
        f"{kept.largest_change:.3g} or {kept.largest_share:.2g} of the value: {source.dtype}, {why}"
    )
    return Fault("TQ507", message, task.sources[0].file, task.name)


def _kept_fault(task: Task, kept: Kept) -> Fault:
    tensor, source = (each.info for each in task.sources)
    if kept.n_infinite:
        message = f"{kept.n_infinite} finite values of the source are infinite as {tensor.dtype}"
    else:
        how = "" if tensor.dtype == source.dtype else f" rounded to {tensor.dtype}"
        unit = "values" if tensor.dtype in FLOATS else "bytes"
        message = (
            f"{kept.n_different} of {task.units} {unit} are not the source's{how}; "
            f"the first is number {kept.first_different}"
        )
    return Fault("TQ504", message, task.sources[0].file, task.name)
