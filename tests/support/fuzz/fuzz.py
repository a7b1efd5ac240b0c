"""Coverage-guided fuzzing of the readers.

    PYTHONPATH=tests python -m support.fuzz.fuzz headers|folders|quantised CORPUS [OPTIONS]

Needs atheris; the options are libFuzzer's. Seeds, most of them from tests/broken, are put into the
folder CORPUS first; what the fuzzer learns is added to it. A crash is written to a file of its own;
its bytes belong into tests/broken.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

TOKENS = Path(__file__).parents[2] / "fuzz" / "tokens.dict"

import atheris  # noqa: E402

with atheris.instrument_imports(include=["tq3"]):
    from support.fuzz import inputs, properties, quantised

_SMALL = b'{"a.weight":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'
TARGETS: dict[str, tuple[Callable[[bytes], None], Callable[[], Iterable[bytes]]]] = {
    "headers": (
        lambda data: properties.check_header(inputs.weights(data)),
        lambda: [b"\x08" + _SMALL, *inputs.header_seeds()],
    ),
    "folders": (
        lambda data: properties.check_folder(inputs.folder(data)),
        lambda: [b"\n%%model.safetensors\n\x08" + _SMALL, *inputs.folder_seeds()],
    ),
    "quantised": (
        lambda data: quantised.check(quantised.listing(data)),
        quantised.seeds,
    ),
}


def main() -> None:
    """Fill the corpus, then hand over to libFuzzer."""
    program, target, corpus, *options = sys.argv
    check, seeds = TARGETS[target]
    Path(corpus).mkdir(parents=True, exist_ok=True)
    for seed in seeds():
        (Path(corpus) / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    dictionary = f"-dict={TOKENS}"
    atheris.Setup([program, corpus, dictionary, *options], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
