"""Layers, imports and docstrings, enforced."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import tq3

PACKAGE = Path(tq3.__file__).parent

# Everybody may import what is FREE; cli, api and the package itself may import everything.
MAY_IMPORT = {
    "format": set(),
    "codec": {"format"},
    "plan": {"format", "codec"},
    "storage": {"format", "plan"},
    "hub": {"format", "plan", "storage"},
    # What runs tell, and what they work with.
    "events": {"format", "plan"},
    "equalization": {"format", "codec", "plan", "events"},
    "dequantization": {"format", "codec", "plan"},
    # What is known of the inputs of weights: files that calibration writes.
    "moments": {"format", "codec", "plan", "storage"},
    "pipelines": {
        *("format", "codec", "plan", "storage", "hub", "events", "equalization", "dequantization"),
        "moments",
    },
    "verification": {
        *("format", "codec", "plan", "storage", "hub", "events", "equalization", "pipelines"),
        "dequantization",
    },
    "publication": {"format", "plan", "storage", "hub", "events", "pipelines", "verification"},
    "runtime": {"format", "codec"},
    # A wing: it reads headers and tq_config.json, and puts modules of the runtime into a host.
    "integrations": {"format", "runtime"},
    # Another wing, which only cli imports: models of a host whose weights it reads itself.
    "evaluation": {
        *("format", "codec", "plan", "storage", "hub", "events", "equalization", "pipelines"),
        *("dequantization", "integrations"),
    },
    # A third one, beside it: the inputs of every matrix of a host's model.
    "calibration": {
        *("format", "codec", "plan", "storage", "hub", "events", "equalization", "pipelines"),
        *("dequantization", "integrations", "evaluation", "moments"),
    },
}
FREE = {"cache", "errors", "parallel", "units", "version"}
TOP = {"cli", "api", "wings", "__init__", "__main__"}

THIRD_PARTY = {
    "format": {"xxhash", "tomli", "typing_extensions"},
    "codec": {"numpy"},
    "hub": {"huggingface_hub", "yaml"},
    "equalization": {"numpy"},
    "dequantization": {"numpy"},
    "moments": {"numpy"},
    "calibration": {"torch"},
    "pipelines": {"numpy"},
    "verification": {"numpy"},
    "cli": {"typer", "rich"},
    "runtime": {"cuda", "numpy", "torch"},
    "integrations": {"accelerate", "torch", "transformers", "vllm"},
    "evaluation": {"accelerate", "matplotlib", "numpy", "torch", "transformers"},
}
# What the compressor never imports, whatever else its layers may.
HEAVY = {"torch", "transformers", "vllm", "safetensors", "scipy", "click", "matplotlib"}
# It imports its host at the top, which is not installed where this suite runs.
NEEDS_HOST = "tq3.integrations.vllm"
# They import NVIDIA's packages at the top, which the suite has on Linux on x86-64.
NEED_NVIDIA = ("tq3.runtime.cuda.compiler", "tq3.runtime.cuda.device")
# Hosts call it, no command of ours does: it finds its cache where users keep theirs.
NEEDS_NO_COMMAND = Path("runtime/cuda/compiler.py")


def part_of(path: Path) -> str:
    """The layer, or the module at the top, that a file belongs to."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports anywhere in it; names imported from one too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layers_imported(path: Path) -> set[str]:
    """Parts of tq3 that a file imports."""
    names = (name.split(".") for name in imported_modules(path))
    return {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "tq3"}


def files_of(part: str) -> list[Path]:
    """All source files of a layer or of a module at the top."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if part_of(path) == part]


def modules() -> list[ModuleType]:
    """Every module of the package that is written in Python."""
    found = pkgutil.walk_packages(tq3.__path__, "tq3.")
    not_ours = ("_native", "_linear", "__main__")
    names = [info.name for info in found if not info.name.endswith(not_ours)]
    missing = (NEEDS_HOST, *(() if find_spec("cuda") else NEED_NVIDIA))
    names = [name for name in names if not name.startswith(missing)]
    return [tq3, *map(importlib.import_module, names)]


def test_every_file_belongs_to_a_part_that_this_test_knows():
    parts = {part_of(path) for path in PACKAGE.rglob("*.py")}
    assert parts == set(MAY_IMPORT) | FREE | TOP


@pytest.mark.parametrize("layer", MAY_IMPORT)
def test_a_layer_imports_only_what_lies_below_it(layer):
    files = files_of(layer)
    assert files
    for path in files:
        assert layers_imported(path) - {layer} - FREE <= MAY_IMPORT[layer], path


def test_a_plan_takes_a_table_from_the_codec_and_does_without_numpy():
    names = {name for path in files_of("plan") for name in imported_modules(path)}
    codec = {name for name in names if name.startswith("tq3.codec")}
    assert codec == {"tq3.codec.expected.expected_error"}


@pytest.mark.parametrize("module", sorted(FREE))
def test_what_everybody_imports_imports_nothing_of_ours(module):
    (path,) = files_of(module)
    assert layers_imported(path) == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.name))
def test_other_packages_are_imported_where_they_belong(path):
    others = {name.split(".")[0] for name in imported_modules(path)} - {"tq3"}
    others -= sys.stdlib_module_names
    assert not others & HEAVY - THIRD_PARTY.get(part_of(path), set())
    assert others <= THIRD_PARTY.get(part_of(path), set())


def test_the_check_sees_imports_inside_of_functions(tmp_path):
    source = "def f():\n    import torch\n    from tq3.cli import app\n"
    (tmp_path / "x.py").write_text(source)
    assert set(imported_modules(tmp_path / "x.py")) == {"torch", "tq3.cli.app"}
    assert layers_imported(tmp_path / "x.py") == {"cli"}


def functions(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Public functions, classes and methods that a module defines."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"{module.__name__}.{name}", value


def test_every_module_and_every_public_function_and_class_says_what_it_is():
    missing = [
        module.__name__
        for module in modules()
        if not module.__doc__ and Path(module.__file__ or "").stat().st_size
    ]
    documented = 0
    for module in modules():
        for name, value in functions(module):
            doc = value.__doc__ or ""
            documented += 1
            # A dataclass without a docstring gets its own signature for one.
            if not doc or doc.startswith(f"{name.rpartition('.')[2]}("):
                missing.append(name)
    assert missing == ["tq3.cli.app.root"]  # which speaks by its help
    assert documented > 50


def test_exported_names_are_there_each_once_and_in_order():
    for name in tq3.__all__:
        assert getattr(tq3, name).__module__.startswith("tq3."), name
    assert len(set(tq3.__all__)) == len(tq3.__all__)
    assert list(tq3.__all__) == sorted(tq3.__all__)


def test_files_and_functions_keep_the_size_of_the_house():
    for path in sorted(PACKAGE.rglob("*.py")):
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"


def test_nothing_below_the_commands_prints_or_reads_the_environment():
    for path in sorted(PACKAGE.rglob("*.py")):
        if part_of(path) == "cli" or path.relative_to(PACKAGE) == NEEDS_NO_COMMAND:
            continue
        names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
        attributes = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        assert not names & {"print", "input"}, path
        assert not attributes & {"environ", "getenv"}, path
