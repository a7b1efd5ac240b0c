"""Times `tq3 compress` from a Hub on this machine against the same model in a folder.

    python scripts/bench_hub.py --gigabytes 4 --rounds 3 --folder build/bench

The server is tests/support/hub/minihub.py, without faults, in a process of its own; its limit is
what a client gets that only receives. Both share the processors, so the floor of a run is the
longest of: the run from the folder, receiving alone, and what both need of the processors, spread
over all of them. --megabytes-a-second slows each connection. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, mode
from urllib.parse import urlsplit

from bench_compress import CHUNK, PROGRAM, cpu_name, make_checkpoint, read_all, shards, timed

MODEL = "bench/model"
SERVER = Path(__file__).parent.parent / "tests" / "hub" / "minihub.py"
CONNECTIONS = 8


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run took; processor_seconds: of program and server together."""

    seconds: float
    processor_seconds: float
    peak_memory_bytes: int


def main() -> None:
    options = parse()
    shutil.rmtree(options.folder, ignore_errors=True)
    print(f"{os.cpu_count()} processors, {cpu_name()}")
    source = make_checkpoint(options.folder / "models" / MODEL, options.gigabytes)
    n_bytes = sum(file.stat().st_size for file in shards(source))
    out = options.folder / "out"
    rounds: list[tuple[Cost, Cost, Cost]] = []
    with serving(options.folder, options.megabytes_a_second) as (endpoint, server):
        there = {"HF_ENDPOINT": endpoint, "HF_HOME": str(options.folder / "home")}
        for _ in range(options.rounds):
            local = cost(server, source, out, lambda: compress(str(source), out, {}))
            hub = cost(server, source, out, lambda: compress(MODEL, out, there))
            limit = cost(server, source, out, lambda: receive(endpoint, source))
            rounds.append((local, hub, limit))
    names = ("from the folder", "from the Hub", "receiving alone, the server's limit")
    for what, costs in zip(names, zip(*rounds, strict=True), strict=True):
        tell(what, costs, n_bytes)
    tell_ratios(rounds)
    shutil.rmtree(options.folder)


def cost(server: int, source: Path, out: Path, run: Callable[[], int]) -> Cost:
    """Time one run, and count what it needs of the processors."""
    spent = 0.0

    def counted() -> int:
        nonlocal spent
        before = processor_seconds(server)
        peak = run()
        spent = processor_seconds(server) - before
        return peak

    timed_run = timed(read_all, source, out, counted)
    return Cost(timed_run.seconds, spent, timed_run.peak_memory_bytes)


def processor_seconds(server: int) -> float:
    """Of this process, of the commands that it ran, and of the server."""
    fields = Path(f"/proc/{server}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    ours = os.times()
    return ticks / os.sysconf("SC_CLK_TCK") + sum(ours[:4])


def tell_ratios(rounds: list[tuple[Cost, Cost, Cost]]) -> None:
    """Compare each run from the Hub with its neighbours, and with what no program could beat."""
    shares, binding, thrift = [], [], []
    for local, hub, limit in rounds:
        both = local.processor_seconds + limit.processor_seconds
        thrift.append(hub.processor_seconds / both)
        floors = {"the folder's speed": local.seconds, "the server": limit.seconds}
        floors["the processors, which encode, receive and serve"] = both / (os.cpu_count() or 1)
        binding.append(max(floors, key=lambda name: floors[name]))
        shares.append(floors[binding[-1]] / hub.seconds)
    print(f"{median(one.seconds / hub.seconds for one, hub, _ in rounds):.2f} of the local speed")
    # Other work on the machine takes wall time from a run, and hardly any processor time.
    print(f"{median(thrift):.2f} of the processor time of folder and receiving together")
    print(f"{median(shares):.2f} of the floor; what binds there: {mode(binding)}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/bench-hub"))
    parser.add_argument("--megabytes-a-second", type=float)
    return parser.parse_args()


@contextmanager
def serving(folder: Path, pace: float | None) -> Iterator[tuple[str, int]]:
    """Address and process of a server that has the models of the folder."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    (folder / "hub").mkdir()
    options = ["--port", str(port), "--root", str(folder / "hub"), "--seed", str(folder / "models")]
    server = subprocess.Popen([sys.executable, str(SERVER), *options], stdout=subprocess.PIPE)
    assert server.stdout
    server.stdout.readline()
    endpoint = f"http://127.0.0.1:{port}"
    told = json.dumps({"pace": pace * 1e6 if pace else None}).encode()
    urllib.request.urlopen(f"{endpoint}/_ctl", told).close()
    try:
        yield endpoint, server.pid
    finally:
        server.terminate()
        server.wait()


def compress(source: str, out: Path, environment: dict[str, str]) -> int:
    """The whole command, start of the interpreter included; gives its peak memory."""
    command = [PROGRAM, "compress", source, str(out), "--json", "--no-equalize"]
    result = subprocess.run(
        command, check=True, capture_output=True, text=True, env=os.environ | environment
    )
    return int(json.loads(result.stdout)["peak_memory_bytes"])


def receive(endpoint: str, source: Path) -> int:
    """Ask for the same ranges over as many connections, and look at no byte of them."""
    addresses = {file: signed_address(endpoint, file) for file in shards(source)}
    port = urlsplit(endpoint).port or 80
    spans = [
        (file, offset, min(2 * CHUNK, file.stat().st_size - offset))
        for file in shards(source)
        for offset in range(0, file.stat().st_size, 2 * CHUNK)
    ]

    def work(first: int) -> None:
        room = memoryview(bytearray(CHUNK))
        with socket.create_connection(("127.0.0.1", port)) as connection:
            for file, offset, length in spans[first::CONNECTIONS]:
                last = offset + length - 1
                asked = f"GET {addresses[file]} HTTP/1.1\r\nHost: x\r\nRange: bytes={offset}-{last}"
                connection.sendall(f"{asked}\r\n\r\n".encode())
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(1)
                left = length
                while left:
                    left -= connection.recv_into(room[: min(left, CHUNK)])

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(work, range(CONNECTIONS)))
    return 0


def signed_address(endpoint: str, file: Path) -> str:
    """Path and query of where the server has a file."""

    class NoRedirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_: object) -> None:
            return None

    opener = urllib.request.build_opener(NoRedirect)
    try:
        opener.open(f"{endpoint}/{MODEL}/resolve/main/{file.name}")
    except urllib.error.HTTPError as answer:
        url = urlsplit(answer.headers["Location"])
        return f"{url.path}?{url.query}"
    raise SystemExit("the server does not redirect")


def tell(what: str, costs: Sequence[Cost], n_bytes: int) -> None:
    seconds = median(one.seconds for one in costs)
    spent = median(one.processor_seconds for one in costs)
    peak = max(one.peak_memory_bytes for one in costs)
    memory = f", peak memory {peak / 1e6:.0f} MB" if peak else ""
    speed = f"{n_bytes / seconds / 1e9:.2f} GB/s"
    print(f"{what}: {seconds:.2f} s = {speed}, {spent:.2f} s of processors{memory}", flush=True)


if __name__ == "__main__":
    main()
