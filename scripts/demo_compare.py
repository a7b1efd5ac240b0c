"""Let the original and the restored model finish the same sentence, greedily, and compare sizes.

python scripts/demo_compare.py ORIGINAL COMPRESSED RESTORED
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

PROMPT = "The capital of France is"
NEW_TOKENS = 24


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a model before and after compression.")
    for name in ("original", "compressed", "restored"):
        parser.add_argument(name, type=Path, metavar=name.upper())
    folders = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()

    show_sizes(folders.original, folders.compressed)
    print(f"\nPrompt    {PROMPT!r}")
    print(f"Original  {greedy_continuation(folders.original)!r}")
    print(f"Restored  {greedy_continuation(folders.restored)!r}")
    print(
        "\nGreedy text. A model of 135 million weights suffers at 3 bits: expect other words, and"
        "\nworse ones. Its embedding, kept in FP16, is more than half of the compressed bytes."
    )


def show_sizes(original: Path, compressed: Path) -> None:
    before, after = weight_bytes(original), weight_bytes(compressed)
    print(f"Original    {before:>13,} bytes of weights in {original}")
    print(f"Compressed  {after:>13,} bytes of weights in {compressed} ({after / before:.0%})")


def weight_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def greedy_continuation(folder: Path) -> str:
    """What the model in `folder` adds to the prompt, as text without special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer(PROMPT, return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)[0]
    return tokenizer.decode(tokens[prompt.input_ids.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main()
