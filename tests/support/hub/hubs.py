"""A Hub of our own, as a process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

TOKEN = "hf_of_a_test"

# Clients before 2.0 do not know hf_xet's local store, and take LFS where it is the server.
WITH_XET = pytest.param(
    "xet", marks=pytest.mark.skipif(huggingface_hub.__version__ < "2", reason="an old client")
)


class Hub:
    """A running server, with what its folder `models` holds in ORGANISATION/NAME/."""

    def __init__(self, root: Path, *options: object) -> None:
        self.port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.trace_path = root / "trace.jsonl"
        command = [
            sys.executable,
            "-m",
            "support.hub.minihub",
            "--port",
            str(self.port),
            "--root",
            str(root),
        ]
        self._process = subprocess.Popen(
            [*command, "--trace", str(self.trace_path), *map(str, options)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdout and self._process.stdout.readline(), "the server did not start"

    def control(self, **faults: Any) -> None:
        """Tell the server which faults to make from now on."""
        request = urllib.request.Request(
            self.endpoint + "/_ctl", json.dumps(faults).encode(), method="POST"
        )
        urllib.request.urlopen(request).close()

    def trace(self) -> list[dict[str, Any]]:
        """What was asked so far, and what was sent."""
        if not self.trace_path.exists():
            return []
        return [json.loads(line) for line in self.trace_path.read_text().splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        """What was asked, a line each, of answers that have begun."""
        return [line for line in self.trace() if "st" in line]

    def sent(self) -> int:
        """Bytes of files that were sent so far; the server notes them a little later."""
        before, now = -1, len(self.trace())
        while before != now:
            time.sleep(0.2)
            before, now = now, len(self.trace())
        return sum(line.get("sent", 0) for line in self.trace())

    def move(self, name: str, files: dict[str, bytes]) -> None:
        """Commit small files to the main branch."""
        lines: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "moved"}}]
        for path, data in files.items():
            value = {"path": path, "content": data.decode(), "encoding": "utf-8"}
            lines.append({"key": "file", "value": value})
        body = "\n".join(map(json.dumps, lines)).encode()
        url = f"{self.endpoint}/api/models/{name}/commit/main"
        urllib.request.urlopen(urllib.request.Request(url, body, method="POST")).close()

    def close(self) -> None:
        """End the server."""
        with self._process:  # which waits, and closes its output
            self._process.terminate()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
