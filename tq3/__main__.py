"""`tq3` and `python -m tq3`: the commands, stopped without a traceback from the first moment on."""

from __future__ import annotations

from tq3.cli.stops import leave_at_once


def main() -> None:
    """Entry point of the console script."""
    leave_at_once()
    from tq3.cli import streams  # noqa: PLC0415  takes long enough to be interrupted

    with streams.fit():
        from tq3.cli.app import app  # noqa: PLC0415  so does this

        app()


if __name__ == "__main__":
    main()
