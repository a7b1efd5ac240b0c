"""The version, as pyproject.toml states it."""

from importlib.metadata import version

__version__ = version("tq3")
