"""Fixtures that tests of runs share."""

from support.pipelines.fixtures import copy, every_kind, made, set_block_bytes

__all__ = ["copy", "every_kind", "made", "set_block_bytes"]
