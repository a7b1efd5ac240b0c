"""`vllm serve` and `run-batch` of a real model: packed they answer as the dense one does.

In float32, so that only the order of additions differs.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tq3

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

SMOLLM2 = Path(__file__).parents[2] / "build" / "smollm2"
PROMPT = "The capital of France is"
N_TOKENS = 12
COMMON = {"max_tokens": N_TOKENS, "temperature": 0}
CHAT = {
    "messages": [{"role": "user", "content": "Name three colours."}],
    "logprobs": True,
    "top_logprobs": 2,
}
START_SECONDS = 240
VLLM = str(Path(sys.executable).with_name("vllm"))
OPTIONS = ["--kv-cache-memory-bytes", "1G", "--dtype", "float32", "--max-model-len", "512"]
OPTIONS += ["--enforce-eager"]
# Settings of the tests that have vLLM in their own process; a server needs none.
OF_ENGINES = {
    "VLLM_ENABLE_V1_MULTIPROCESSING",
    "VLLM_CPU_KVCACHE_SPACE",
    "VLLM_CPU_OMP_THREADS_BIND",
    "OMP_NUM_THREADS",
}
# Where the dense model's two best tokens are closer than this in log probability, roundings may
# choose; the texts are compared up to there.
MARGIN = 0.02


class Token(NamedTuple):
    """A greedy token as the server names it, and how far the second one is."""

    text: str
    margin: float


@pytest.fixture(scope="module")
def folders(work):
    """SmolLM2-135M, which `make vllm` expands to build/smollm2, packed and as it decodes."""
    packed, dense = work / "smollm2-tq3", work / "smollm2-dense"
    # With searched codes 3 bits leave this model undecided after two tokens.
    tq3.compress(SMOLLM2, packed, scale="norm", equalize=False)
    tq3.restore(packed, dense, dtype="float32")
    return packed, dense


@pytest.fixture(scope="module")
def answers(folders):
    """What each server says to the same two requests, one server at a time."""
    found = []
    for folder in folders:
        with server(folder) as url:
            found.append((complete(url, folder), chat(url, folder)))
    return found


def test_completions_are_those_of_the_dense_model(answers):
    (packed, _), (dense, _) = answers
    assert_same(packed, dense)


def test_chat_completions_are_those_of_the_dense_model(answers):
    (_, packed), (_, dense) = answers
    assert_same(packed, dense)


def test_run_batch_writes_what_a_server_says(folders, answers, tmp_path):
    packed, _ = folders
    request = {"custom_id": "colours", "method": "POST", "url": "/v1/chat/completions"}
    asked, answered = tmp_path / "asked.jsonl", tmp_path / "answered.jsonl"
    asked.write_text(json.dumps(request | {"body": CHAT | COMMON | {"model": str(packed)}}))
    files = ("-i", asked, "-o", answered)
    command = [VLLM, "run-batch", *files, "--model", packed, *OPTIONS]
    run = subprocess.run(command, env=settings(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-5000:]
    answer = json.loads(answered.read_text())
    choice = answer["response"]["body"]["choices"][0]
    _, (_, dense) = answers
    assert (answer["custom_id"], answer["error"]) == ("colours", None)
    assert_same(chat_tokens(choice), dense)


def assert_same(packed: list[Token], dense: list[Token]) -> None:
    n_clear = next((i for i, t in enumerate(dense) if t.margin <= MARGIN), len(dense))
    assert n_clear >= 5
    assert [t.text for t in packed[:n_clear]] == [t.text for t in dense[:n_clear]]


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """`vllm serve` as docs/serving.md says it: its URL, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.with_name(folder.name + ".log")
    command = [VLLM, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), *OPTIONS]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=settings())
    url = f"http://127.0.0.1:{port}"
    try:
        wait(process, url, log)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def settings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OF_ENGINES}


def wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"vllm serve did not start:\n{log.read_text()[-5000:]}")


def post(url: str, request: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps(request | COMMON).encode()
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(url, body, headers)
    with urllib.request.urlopen(call, timeout=300) as answer:
        return json.load(answer)["choices"][0]


def complete(url: str, folder: Path) -> list[Token]:
    choice = post(f"{url}/v1/completions", {"model": str(folder), "prompt": PROMPT, "logprobs": 2})
    found = choice["logprobs"]
    return [
        Token(text, margin(top.values()))
        for text, top in zip(found["tokens"], found["top_logprobs"], strict=True)
    ]


def chat(url: str, folder: Path) -> list[Token]:
    return chat_tokens(post(f"{url}/v1/chat/completions", CHAT | {"model": str(folder)}))


def chat_tokens(choice: dict[str, Any]) -> list[Token]:
    return [
        Token(entry["token"], margin(top["logprob"] for top in entry["top_logprobs"]))
        for entry in choice["logprobs"]["content"]
    ]


def margin(logprobs: Any) -> float:
    first, second = sorted(logprobs, reverse=True)[:2]
    return first - second
