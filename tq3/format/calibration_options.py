"""Options by which codes are chosen for what the weights multiply."""

from __future__ import annotations

import os
from typing import Annotated, TypedDict

from tq3.format.option import RUN, SMALL, Option


class CalibrationKeywords(TypedDict, total=False):
    """Under which second moments of their inputs weights are coded."""

    calibrate: Annotated[
        str | os.PathLike[str] | None,
        Option(
            "Choose codes for what the weights multiply: a file of `tq3 calibrate`, or what to "
            "send through the model first (needs torch): a text file, what the model itself writes,"
            " or random tokens. Same size, same readers.",
            SMALL,
            metavar="MOMENTS|TEXT|self|random",
        ),
    ]
    calibration_tokens: Annotated[
        int | None,
        Option("Tokens to calibrate with, where --calibrate is no file of moments.", RUN, "N"),
    ]
