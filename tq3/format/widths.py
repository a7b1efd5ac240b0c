"""Which widths each role of tensors may have: the part of a recipe that is a TOML file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, get_args

from tq3.errors import BadInput, UsageError
from tq3.format.sizes import parse_size

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Bits = Literal[2, 3, 4]
NormDtype = Literal["float32", "float16"]
WIDTHS: tuple[int, ...] = get_args(Bits)
EXACT = "exact"
ROLES = (
    *("q", "k", "v", "qkv", "o", "gate_up", "down"),
    *("expert_gate_up", "expert_down", "shared_gate_up", "shared_down", "router"),
    *("linear_in", "linear_out", "linear_gates"),
    *("vision", "mtp", "lm_head", "embeddings", "other"),
)
QKV = ("q", "k", "v", "qkv")
# Roles that the published policy keeps; a recipe compresses them only by name.
BY_NAME = frozenset(("lm_head", "embeddings"))
OTHERS = "others"
# Key -> types of its value, and these in words.
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "summary": ((str,), "a text"),
    "roles": ((dict,), "a table"),
    "split_qkv": ((bool,), "true or false"),
    "target_bpw": ((int, float), "a number"),
    "target_width": ((int, float), "a number"),
    "target_size": ((int, str), 'a size such as "13GiB"'),
    "norms": ((str,), "a text"),
}
_SUFFIX = ".toml"
MOST_BITS = 32
_BITS = f"above 0 and at most {MOST_BITS}: 3.5, say"
# Of a number that may have no end.
_SHOWN = 20

Width = int | None  # None: not compressed


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths that roles may have, and what decides where there are several.

    name: of the recipe; that of a file ends in .toml
    roles: role -> its choices, for those that have their own; others: of all other roles, save
    `lm_head` and `embeddings`, which then stay uncompressed
    split_qkv: whether q, k and v of a layer may differ
    target_bytes: of all weight files together; target_bpw: stored bits a weight over all tensors
    that have a width among their choices; target_width: bits of a code over all that have several
    choices, whatever groups and padding add. At most one of them.
    norms: how they are stored where nothing else is asked for; None: as usual
    """

    name: str
    others: tuple[Width, ...]
    roles: Mapping[str, tuple[Width, ...]] = field(default_factory=dict)
    split_qkv: bool = True
    target_bytes: int | None = None
    target_bpw: float | None = None
    target_width: float | None = None
    norms: NormDtype | None = None

    @property
    def targets(self) -> dict[str, float]:
        """The target, by its key in a recipe file."""
        found = {
            "target_size": self.target_bytes,
            "target_bpw": self.target_bpw,
            "target_width": self.target_width,
        }
        return {key: value for key, value in found.items() if value is not None}

    def choices(self, role: str, *, only: bool = False) -> tuple[Width, ...]:
        """The widths that tensors of this role may get; None for uncompressed.

        only: the tensor is one of those that --only names, whatever the recipe says
        """
        found = self.roles.get(role, (None,) if role in BY_NAME else self.others)
        return self.others if only and not any(found) else found

    @property
    def may_choose(self) -> bool:
        """Whether some role has several choices."""
        return any(len(some) > 1 for some in (self.others, *self.roles.values()))

    def check(self) -> None:
        """Raise UsageError for choices without a target, a target without choices or sense."""
        has_target = bool(self.targets)
        if self.may_choose and not has_target:
            raise UsageError(
                f"recipe {self.name!r} leaves widths open",
                fix="add --target-size or --target-bpw, or a target to the recipe",
            )
        for bits in (self.target_bpw, self.target_width):
            if bits is not None and not 0 < bits <= MOST_BITS:
                raise UsageError(f"a target of {bits} bits", expected=_BITS)
        if has_target and not self.may_choose:
            raise UsageError(
                f"a target, but recipe {self.name!r} leaves nothing to choose",
                fix="leave the target out, or name a recipe whose roles have several widths",
            )

    def to_record(self) -> dict[str, Any]:
        """The widths as JSON, in the words of a recipe file: `parse_widths` reads it."""
        choices = {OTHERS: self.others, **self.roles}
        return {
            "split_qkv": self.split_qkv,
            "roles": {role: [bits or EXACT for bits in some] for role, some in choices.items()},
            **self.targets,
            **({"norms": self.norms} if self.norms else {}),
        }


def recipe_names() -> list[str]:
    """The recipes that come with tq3."""
    found = (path.name for path in _folder().iterdir() if path.name.endswith(_SUFFIX))
    return sorted(name.removesuffix(_SUFFIX) for name in found if name != SENSITIVITIES)


SENSITIVITIES = "sensitivities.toml"


def load_widths(recipe: str) -> Widths:
    """A recipe that comes with tq3, by its name, or a file, by a path that ends in .toml.

    Raises UsageError for a name or file that isn't there, BadInput for what a file says wrongly.
    """
    if is_recipe_file(recipe):
        return parse_widths(_parse_toml(_read(Path(recipe)), recipe), Path(recipe).name, recipe)
    if recipe not in recipe_names():
        raise UsageError(
            f"no recipe {recipe!r}",
            expected=f"{', '.join(recipe_names())}, or the path of a {_SUFFIX} file",
        )
    return parse_widths(own_toml(recipe + _SUFFIX), recipe, recipe + _SUFFIX)


def is_recipe_file(recipe: str) -> bool:
    """Whether a recipe is named by the path of a file, and not one that comes with tq3."""
    return recipe.lower().endswith(_SUFFIX)


def own_toml(name: str) -> dict[str, Any]:
    """One of the TOML files that come with tq3."""
    return _parse_toml(_folder().joinpath(name).read_text("utf-8"), name)


def parse_widths(raw: Mapping[str, Any], name: str, file: str) -> Widths:
    """The widths of a recipe file, or of a record of one. Raises BadInput with file and key."""
    _check_keys(raw, file)
    roles = raw.get("roles") or {}
    for role in roles:
        if role not in (*ROLES, OTHERS):
            raise _fault(file, f"no role {role!r}", expected=", ".join((OTHERS, *ROLES)))
    if OTHERS not in roles:
        raise _fault(file, f"roles.{OTHERS} is missing", expected="a width for all other roles")
    choices = {role: _choices(role, found, file) for role, found in roles.items()}
    target_size = raw.get("target_size")
    widths = Widths(
        name=name,
        others=choices.pop(OTHERS),
        roles=choices,
        split_qkv=raw.get("split_qkv") is not False,
        target_bytes=None if target_size is None else _size(target_size, file),
        target_bpw=_bits(raw, "target_bpw", file),
        target_width=_bits(raw, "target_width", file),
        norms=raw.get("norms"),
    )
    norms = get_args(NormDtype)
    if widths.norms not in (None, *norms):
        raise _fault(file, "norms", found=repr(widths.norms), expected=" or ".join(norms))
    if len(widths.targets) > 1:
        raise _fault(file, " and ".join(widths.targets), expected="one of them")
    _check_qkv(widths, file)
    return widths


def _check_keys(raw: Mapping[str, Any], file: str) -> None:
    """Check that keys are known and values of the right types, or null in a record."""
    for key, value in raw.items():
        if key not in _KEYS:
            raise _fault(file, f"unknown key {key!r}", expected=", ".join(_KEYS))
        types, words = _KEYS[key]
        if value is not None and type(value) not in types:
            raise _fault(file, key, found=repr(value), expected=words)


def _check_qkv(widths: Widths, file: str) -> None:
    if not widths.split_qkv and len({widths.choices(role) for role in QKV}) > 1:
        raise _fault(
            file,
            "q, k, v and qkv differ, but split_qkv is false",
            expected="the same widths for all of them, or split_qkv = true",
        )


def _choices(role: str, found: Any, file: str) -> tuple[Width, ...]:
    several = found if isinstance(found, list) else [found]
    allowed = (*WIDTHS, EXACT)
    ok = several and all(type(one) in (int, str) and one in allowed for one in several)
    if not ok or len(set(several)) < len(several):
        raise _fault(
            file,
            f"roles.{role}",
            found=repr(found),
            expected=f'{", ".join(map(str, WIDTHS))} or "{EXACT}", or a list of some of them',
        )
    return tuple(None if one == EXACT else one for one in several)


def _bits(raw: Mapping[str, Any], key: str, file: str) -> float | None:
    found = raw.get(key)
    if found is not None and not 0 < found <= MOST_BITS:  # before float(), for a number without end
        raise _fault(file, key, found=str(found)[:_SHOWN], expected=_BITS)
    return None if found is None else float(found)


def _size(found: int | str, file: str) -> int:
    try:
        return parse_size(found)
    except UsageError as error:
        raise _fault(file, f"target_size: {error}") from None


def _fault(file: str, what: str, *, found: object = None, expected: object = None) -> BadInput:
    return BadInput(what, file=file, found=found, expected=expected, fix="see docs/recipes.md")


def _parse_toml(text: str, file: str) -> dict[str, Any]:
    try:
        parsed: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers and nesting without end
        raise BadInput(f"not TOML: {error}", file=file) from None
    return parsed


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8: {error}", file=path, fix="save it as UTF-8") from None
    except OSError as error:
        raise UsageError(
            f"no recipe can be read: {error.strerror}",
            file=path,
            fix=f"name a file, or one of {', '.join(recipe_names())}",
        ) from None


def _folder() -> Any:
    return files("tq3").joinpath("recipes")
