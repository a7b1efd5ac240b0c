"""The bytes of an answer by our own connections, and when huggingface_hub's client is asked."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import _http

from tq3.hub.answers import Connections

CONTENT = bytes(range(256)) * 1000
SETTINGS = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


class Storage(BaseHTTPRequestHandler):
    """Gives CONTENT, in the way that the path names."""

    protocol_version = "HTTP/1.1"
    connections: list[object]
    asked: list[str]

    def setup(self) -> None:
        super().setup()
        self.connections.append(self.client_address)

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path == "/elsewhere":
            self._send(302, {"Location": "/content"}, b"")
        elif self.path == "/chunked":
            self._send(200, {"Transfer-Encoding": "chunked"}, b"3e8\r\n%b\r\n" % CONTENT[:1000])
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(CONTENT) - 1000, CONTENT[1000:]))
        elif self.path == "/and-closed":
            self._send(200, {}, CONTENT)
            self.close_connection = True  # without a word of it in the answer
        elif self.path == "/silent":
            time.sleep(5)
        else:
            self._send(200, {}, CONTENT)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        length = {} if "Transfer-Encoding" in headers else {"Content-Length": str(len(body))}
        for name, value in {**headers, **length}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


StartStorage = Callable[..., tuple[str, type[Storage]]]


@pytest.fixture
def start_storage(monkeypatch) -> Iterator[StartStorage]:
    """Starts a server; gives its address, and what it saw."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    servers: list[ThreadingHTTPServer] = []

    def start(certificate: Path | None = None) -> tuple[str, type[Storage]]:
        seen = type("Seen", (Storage,), {"connections": [], "asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), seen)
        monkeypatch.setattr(server, "handle_error", lambda *_: None)  # of clients that hang up
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return f"http{'s' if certificate else ''}://localhost:{server.server_port}", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
    huggingface_hub.close_session()


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections(silence_seconds=2.0)
    yield made
    made.end()


def read(connections: Connections, url: str) -> bytes:
    """The whole body."""
    room = bytearray(2 * len(CONTENT))
    left = memoryview(room)
    with connections.get(url, {"Accept-Encoding": "identity"}) as answer:
        assert answer.status == 200
        while n_bytes := answer.read_into(left):
            left = left[n_bytes:]
    return bytes(room[: len(room) - len(left)])


def test_one_thread_needs_one_connection(start_storage, connections):
    address, seen = start_storage()
    for _ in range(5):
        assert read(connections, f"{address}/content") == CONTENT
    assert len(seen.connections) == 1


def test_a_connection_that_was_closed_while_it_was_idle_is_replaced(start_storage, connections):
    address, seen = start_storage()
    for _ in range(3):
        assert read(connections, f"{address}/and-closed") == CONTENT
        time.sleep(0.1)
    assert len(seen.connections) == 3


def test_an_answer_that_was_not_read_to_its_end_spoils_no_other(start_storage, connections):
    address, _ = start_storage()
    with connections.get(f"{address}/content", {}) as answer:
        assert answer.read_into(memoryview(bytearray(100)))
    assert read(connections, f"{address}/content") == CONTENT


@pytest.mark.parametrize("path", ["elsewhere", "chunked"])
def test_a_redirection_and_an_answer_of_no_told_length_are_left_to_their_client(
    start_storage, connections, path
):
    address, seen = start_storage()
    assert read(connections, f"{address}/{path}") == CONTENT
    assert seen.asked[:2] == [f"/{path}", f"/{path}"]


def test_a_proxy_is_left_to_their_client(start_storage, connections, monkeypatch):
    address, seen = start_storage()
    monkeypatch.setenv("HTTP_PROXY", address)
    assert read(connections, "http://storage.invalid/content") == CONTENT
    assert seen.asked == ["http://storage.invalid/content"]


def test_a_client_that_the_program_chose_is_asked(start_storage, connections, monkeypatch):
    address, seen = start_storage()

    def chosen():
        client = _http.default_client_factory()
        client.headers["User-Agent"] = "chosen"
        return client

    agents = []

    def noting(self: Storage) -> None:
        agents.append(self.headers["User-Agent"])
        Storage.do_GET(self)

    monkeypatch.setattr(seen, "do_GET", noting)
    huggingface_hub.set_client_factory(chosen)
    try:
        assert read(connections, f"{address}/content") == CONTENT
    finally:
        huggingface_hub.set_client_factory(_http.default_client_factory)
    assert read(connections, f"{address}/content") == CONTENT
    assert agents == ["chosen", None]


def test_tls_trusts_what_huggingface_hub_trusts(start_storage, tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path)
    address, _ = start_storage(certificate)
    stranger = Connections(silence_seconds=2.0)
    with pytest.raises(ssl.SSLCertVerificationError):
        read(stranger, f"{address}/content")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    friend = Connections(silence_seconds=2.0)
    assert read(friend, f"{address}/content") == CONTENT
    friend.end()


def make_certificate(folder: Path) -> Path:
    """A certificate of localhost, with its key in the same file."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate")
    path = folder / "localhost.pem"
    asked = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-nodes"]
    made = ["-newkey", "rsa:2048", "-keyout", str(path), "-out", str(folder / "certificate.pem")]
    command = ["openssl", "req", "-x509", "-days", "2", *asked, *made]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + (folder / "certificate.pem").read_text())
    return path


def test_silence_ends_after_its_time(start_storage):
    address, _ = start_storage()
    with pytest.raises(TimeoutError):
        read(Connections(silence_seconds=0.2), f"{address}/silent")


def test_the_end_wakes_whoever_waits_for_an_answer(start_storage):
    address, seen = start_storage()
    connections, errors = Connections(silence_seconds=60.0), []

    def wait() -> None:
        try:
            read(connections, f"{address}/silent")
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not seen.asked:
        time.sleep(0.01)
    started = time.monotonic()
    connections.end()
    thread.join()
    assert errors
    assert time.monotonic() - started < 2
