"""How the tests of the commands run one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from tq3.cli.app import app

Run = Callable[..., Result]


@pytest.fixture
def tq3() -> Run:
    """`tq3("inspect", path)` in this process; an exception that is no exit fails the test."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
