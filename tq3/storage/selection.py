"""What a user wants to travel or to stay: globs on whole paths, or on those of folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from tq3.errors import UsageError
from tq3.format.arguments import several
from tq3.format.files import CONFIG
from tq3.format.options import Globs


@dataclass(frozen=True, slots=True)
class Selection:
    """The side files that the user wants to travel or to stay in spite of the policy.

    also: travels although it would stay behind; without: stays behind, even what `also` takes
    """

    also: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    @classmethod
    def of(cls, also: Globs, without: Globs) -> Selection:
        """A selection from one glob, several or none."""
        return cls(several(also), several(without))

    def to_record(self) -> dict[str, list[str]]:
        """The globs as JSON, by option; empty where none was given."""
        return {option: list(globs) for option, globs in asdict(self).items() if globs}

    def takes(self, name: str) -> bool:
        """Whether the file is asked for."""
        return any(_fits(name, glob) for glob in self.also)

    def leaves(self, name: str) -> bool:
        """Whether the file is to stay behind: never config.json."""
        return name != CONFIG and any(_fits(name, glob) for glob in self.without)

    def check(self, names: list[str]) -> None:
        """Raise UsageError for a glob that fits none of these files.

        It is a slip of the pen: something would be missing, or too much.
        """
        _check_globs("--also", self.also, names)
        _check_globs("--without", self.without, [name for name in names if name != CONFIG])


BY_POLICY = Selection()


def _check_globs(option: str, globs: Iterable[str], names: list[str]) -> None:
    for glob in globs:
        if not any(_fits(name, glob) for name in names):
            raise UsageError(
                f"{option} {glob!r} matches no file beside the weights",
                found=f"files such as {names[0]!r}" if names else "no such files",
                fix="give a path below the folder, or a glob of some; config.json always travels",
            )


def _fits(name: str, glob: str) -> bool:
    return any(fnmatchcase(path, glob.rstrip("/")) for path in _with_folders(name))


def _with_folders(name: str) -> Iterator[str]:
    yield name
    yield from map(str, PurePosixPath(name).parents[:-1])
