"""A repository's files, byte for byte, whatever the network and the server do meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from support.factories import random_tensor, tiny_checkpoint
from support.hub.hubs import TOKEN
from support.hub.reading import HASTY, IMPATIENT, MODEL, WEIGHTS, read

from tq3.errors import NetworkError
from tq3.hub.files import HubFiles
from tq3.hub.options import HubOptions

FAULTS: dict[str, dict[str, Any]] = {
    "the connection is cut": {"truncate": {WEIGHTS: 300_000}},
    "and cut at once": {"truncate": {WEIGHTS: 0}},
    "the storage fails": {"fail": {"GET /cdn/": [503, 3]}},
    "the storage is slow to answer": {"fail": {"GET /cdn/": [504, 2]}},
    "a time-out": {"fail": {"GET /cdn/": [408, 1]}},
    "too many requests": {"fail": {"GET /cdn/": [429, 2, None, {"Retry-After": "0"}]}},
    "the Hub fails when asked for the address": {"fail": {"HEAD .*/resolve/": [503, 2]}},
    "the Hub fails at the first question": {"fail": {"GET /api/models/": [503, 2]}},
    "silence in the middle": {"stall": {WEIGHTS: [200_000, 5, 1]}},
    "addresses that expire at once": {"address_uses": 1, "truncate": {WEIGHTS: 300_000}},
    "another size": {"lie": {WEIGHTS: ["size", 1]}},
    "another range": {"lie": {WEIGHTS: ["range", 1]}},
    "the whole file, not the range": {"lie": {WEIGHTS: ["whole", 1]}},
    "a byte too few": {"lie": {WEIGHTS: ["short", 1]}},
    "a byte too many": {"lie": {WEIGHTS: ["long", 1]}},
    "an encoding that nobody asked for": {"lie": {WEIGHTS: ["encoded", 1]}},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_passing_fault_is_overcome(hub, folder, fault):
    hub.control(**FAULTS[fault])
    assert read() == (folder / WEIGHTS).read_bytes()[1000:]


LASTING: dict[str, tuple[dict[str, Any], str]] = {
    "the storage fails": ({"fail": {"GET /cdn/": [503, 10**6]}}, "the Hub fails (503)"),
    "too many requests": ({"fail": {"GET /cdn/": [429, 10**6]}}, "too many requests (429)"),
    "nothing but cuts": ({"fail": {"GET /cdn/": [408, 10**6]}}, "the Hub fails (408)"),
    "a refusal": ({"fail": {"GET /cdn/": [403, 10**6]}}, "status 403, expected 206"),
    "another size": ({"lie": {WEIGHTS: ["size", 10**6]}}, "another range"),
    "no ranges": ({"lie": {WEIGHTS: ["whole", 10**6]}}, "status 200, expected 206"),
}


@pytest.mark.parametrize("fault", LASTING)
def test_a_lasting_fault_ends_in_one_sentence_when_patience_ends(hub, fault):
    told, words = LASTING[fault]
    hub.control(**told)
    started = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        read(IMPATIENT)
    assert words in str(caught.value)
    assert WEIGHTS in str(caught.value)
    assert caught.value.repeatable
    assert time.monotonic() - started < 10


def test_a_hub_that_vanishes_ends_in_one_sentence(hub):
    with HubFiles(MODEL, IMPATIENT) as files:
        files.read(WEIGHTS, 70_000, 100)
        hub.close()
        with pytest.raises(NetworkError, match=r"not reachable: .*HF_ENDPOINT"):
            files.read(WEIGHTS, 80_000, 100)


def test_after_a_cut_the_range_goes_on_from_the_byte_where_it_stopped(hub, folder):
    hub.control(truncate={WEIGHTS: 300_000})
    read()
    size = (folder / WEIGHTS).stat().st_size
    asked = [line["range"] for line in hub.trace() if line.get("st") and "/cdn/" in line["p"]]
    assert asked == [
        f"bytes=1000-{size - 1}",
        f"bytes=301000-{size - 1}",
    ]


def test_each_new_byte_begins_the_patience_anew(hub, folder):
    with HubFiles(MODEL, IMPATIENT) as files:
        for start in range(0, 600_000, 100_000):  # six cuts, each of which takes some patience
            hub.control(truncate={WEIGHTS: 50_000}, fail={"GET /cdn/": [503, 3]})
            want = (folder / WEIGHTS).read_bytes()[start : start + 100_000]
            assert files.read(WEIGHTS, start, 100_000) == want


def test_retry_after_is_obeyed(hub):
    hub.control(fail={"GET /cdn/": [429, 1, None, {"Retry-After": "1"}]})
    started = time.monotonic()
    read()
    assert time.monotonic() - started > 1


def test_a_wait_longer_than_the_patience_is_not_begun(hub):
    hub.control(fail={"GET /cdn/": [429, 9, None, {"Retry-After": "3600"}]})
    started = time.monotonic()
    with pytest.raises(NetworkError, match="too many requests"):
        read()
    assert time.monotonic() - started < 60


def test_content_that_changes_its_etag_between_two_answers_is_asked_for_anew(hub, folder):
    with HubFiles(MODEL, HASTY) as files:
        files.read(WEIGHTS, 70_000, 100)
        hub.control(lie={WEIGHTS: ["etag", 1]})
        assert files.read(WEIGHTS, 80_000, 9) == (folder / WEIGHTS).read_bytes()[80_000:80_009]
        hub.control(lie={WEIGHTS: ["etag", 2]})
    heads = [line for line in hub.trace() if line.get("m") == "HEAD"]
    assert len(heads) == 2


def test_an_address_is_asked_for_once_as_long_as_it_works(hub):
    with HubFiles(MODEL, HASTY) as files:
        for start in range(0, 500_000, 70_000):
            files.read(WEIGHTS, start, 1000)
    assert sum(line.get("m") == "HEAD" for line in hub.trace()) == 1


def test_headers_that_are_expected_are_fetched_at_the_same_time(start_hub, tmp_path):
    tensors = {f"{i}.weight": random_tensor(8, 4096, seed=i) for i in range(8)}
    folder = tiny_checkpoint(tmp_path / "models" / MODEL, tensors, shards=8)
    hub = start_hub("--seed", tmp_path / "models")
    hub.control(pace=130_000)  # half a second for each head
    names = [path.name for path in sorted(folder.glob("*.safetensors"))]
    with HubFiles(MODEL, HASTY) as files:
        started = time.monotonic()
        files.expect(names)
        assert time.monotonic() - started < 3  # one after the other it would be four
        asked = len(hub.requests())
        for name in names:
            assert files.read(name, 8, 100) == (folder / name).read_bytes()[8:108]
        assert len(hub.requests()) == asked


def test_the_storage_never_sees_the_token(start_hub, folder):
    hub = start_hub("--seed", folder.parent.parent, token=TOKEN)
    read()
    to_storage = [line["auth"] for line in hub.trace() if "/cdn/" in line.get("p", "")]
    to_hub = [line["auth"] for line in hub.trace() if "/api/models/" in line.get("p", "")]
    assert to_storage
    assert set(to_storage) == {""}
    assert set(to_hub) == {f"Bearer {TOKEN}"[:12]}


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", WEIGHTS])
def test_a_file_that_is_read_whole_is_checked_against_its_hash(hub, folder, name):
    with HubFiles(MODEL, HASTY) as files:
        assert b"".join(files.parts(name)) == (folder / name).read_bytes()
        hub.control(lie={name: ["corrupt", 1]})
        with pytest.raises(NetworkError, match="not the content that the Hub names"):
            b"".join(files.parts(name))


def test_small_files_are_read_from_a_server_that_knows_no_ranges(hub, folder):
    hub.control(lie={"tokenizer.json": ["whole", 10**6]})
    with HubFiles(MODEL, HASTY) as files:
        assert files.read("tokenizer.json", 3, 5) == (folder / "tokenizer.json").read_bytes()[3:8]


def test_a_file_without_a_byte_needs_no_request(start_hub, folder):
    (folder / "empty.json").write_bytes(b"")
    start_hub("--seed", folder.parent.parent)
    with HubFiles(MODEL, HASTY) as files:
        assert files.read("empty.json", 0, 0) == b""


def test_bytes_beyond_the_end_are_refused_without_a_request(hub):
    with HubFiles(MODEL, HASTY) as files:
        with pytest.raises(NetworkError, match="shorter than what is to be read"):
            files.read(WEIGHTS, files.size(WEIGHTS) - 10, 11)
        with pytest.raises(NetworkError, match="no such file"):
            files.size("other.safetensors")


def test_a_revision_that_moves_does_not_change_what_is_read(hub):
    with HubFiles(MODEL, HASTY) as files:
        before, first = files.origin, files.read("config.json", 0, files.size("config.json"))
        hub.move(MODEL, {"config.json": b'{"moved": true}'})
        with HubFiles(MODEL, HASTY) as moved:
            assert moved.origin != before
            assert moved.stamp(WEIGHTS) != files.stamp(WEIGHTS)
            assert b"moved" in b"".join(moved.parts("config.json"))
        assert b"".join(files.parts("config.json")) == first
    with HubFiles(MODEL, HubOptions(revision=before.revision)) as pinned:
        assert b"".join(pinned.parts("config.json")) == first


def test_who_waits_no_longer_ends_the_waiting(hub):
    hub.control(fail={"GET /cdn/": [503, 10**6]})
    errors: list[NetworkError] = []

    def wait() -> None:
        try:
            files.read(WEIGHTS, 70_000, 1000)
        except NetworkError as error:
            errors.append(error)

    with HubFiles(MODEL, HubOptions(first_wait_seconds=60, longest_wait_seconds=60)) as files:
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.2)
        started = time.monotonic()
        files.cancel()
        thread.join()
    assert time.monotonic() - started < 10
    assert [str(error) for error in errors] == [f"{MODEL}/{WEIGHTS}: given up"]


def test_connections_read_at_the_same_time(hub, folder):
    hub.control(pace=100_000)
    whole = (folder / WEIGHTS).read_bytes()
    results: dict[int, bytes] = {}
    with HubFiles(MODEL, HASTY) as files:

        def fetch(start: int) -> None:
            results[start] = files.read(WEIGHTS, start, 60_000)

        started = time.monotonic()
        threads = [threading.Thread(target=fetch, args=(i * 60_000 + 5,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(data == whole[start : start + 60_000] for start, data in results.items())
    assert len(results) == 8
    assert time.monotonic() - started < 3  # one after the other it would be five seconds
