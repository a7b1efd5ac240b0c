"""Two English texts that Debian ships, cut into windows of tokens.

handbook: The Debian Administrator's Handbook (package debian-handbook). Everything was tuned on it.
history: A Brief History of Debian (package debian-history). Set aside: nothing was tuned on it.
random: uniformly random tokens, for what can be measured without any text.
"""

from __future__ import annotations

import gzip
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

CONTEXT = 512
TUNING, ASIDE, NO_TEXT = "handbook", "history", "random"
_FOLDER = Path("usr/share/doc")


def windows(
    name: str, tokenizer: PreTrainedTokenizerBase, work: Path, n_tokens: int, bos: bool
) -> torch.Tensor:
    """Equally spaced stretches of the text.  (n_tokens / CONTEXT, CONTEXT) int64

    With `bos` each begins with the token that starts a text, which Gemma can't do without.
    """
    n = n_tokens // CONTEXT
    if name == NO_TEXT:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randint(0, len(tokenizer), (n, CONTEXT), generator=generator)
    else:
        tokens = tokenizer(read(name, work), add_special_tokens=False, verbose=False).input_ids
        starts = [i * len(tokens) // n for i in range(n)]
        rows = torch.tensor([tokens[start : start + CONTEXT] for start in starts])
    if bos:
        rows = torch.cat([torch.full((n, 1), tokenizer.bos_token_id), rows[:, :-1]], 1)
    return rows


def read(name: str, work: Path) -> str:
    """The whole text; its package is fetched once, by apt-get."""
    folder = _unpacked(f"debian-{name}", work)
    if name == ASIDE:
        file = folder / "debian-history/docs/project-history.en.txt.gz"
        return gzip.decompress(file.read_bytes()).decode()
    pages = sorted((folder / "debian-handbook/html/en-US").glob("sect.*.html"))
    return "\n\n".join(paragraph for page in pages for paragraph in paragraphs(page.read_text()))


def _unpacked(package: str, work: Path) -> Path:
    """What the package installs as documentation."""
    target = work / package
    if not target.exists():
        target.mkdir(parents=True)
        subprocess.run(["apt-get", "download", package], cwd=target, check=True)
        (archive,) = target.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    return target / _FOLDER


def paragraphs(page: str) -> list[str]:
    parser = _Paragraphs()
    parser.feed(page)
    return [text for text in (" ".join(part.split()) for part in parser.found) if text]


class _Paragraphs(HTMLParser):
    """Text of each outermost <div class="para">, listings left out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._divs: list[bool] = []  # whether each open div is a paragraph
        self._listings = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "div":
            self._divs.append(dict(attrs).get("class") == "para")
            if self._divs[-1] and sum(self._divs) == 1:
                self.found.append("")
        self._listings += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        if tag == "div" and self._divs:
            self._divs.pop()
        self._listings -= tag == "pre"

    def handle_data(self, data: str) -> None:
        if any(self._divs) and not self._listings:
            self.found[-1] += data
