"""The bytes of an answer by huggingface_hub's client, which keeps its own settings."""

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

from tq3.hub.answers import Connections
from tq3.hub.failures import HTTPError

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
    huggingface_hub.close_session()
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
def test_a_redirection_is_followed_and_an_answer_of_no_told_length_read(
    start_storage, connections, path
):
    address, _ = start_storage()
    assert read(connections, f"{address}/{path}") == CONTENT


def test_a_proxy_is_asked(start_storage, connections, monkeypatch):
    address, seen = start_storage()
    monkeypatch.setenv("HTTP_PROXY", address)
    assert read(connections, "http://storage.invalid/content") == CONTENT
    assert seen.asked == ["http://storage.invalid/content"]


def test_the_client_of_the_program_is_asked(start_storage, connections, monkeypatch):
    address, seen = start_storage()

    agents = []

    def noting(self: Storage) -> None:
        agents.append(self.headers["User-Agent"])
        Storage.do_GET(self)

    monkeypatch.setattr(seen, "do_GET", noting)
    huggingface_hub.get_session().headers["User-Agent"] = "chosen"
    assert read(connections, f"{address}/content") == CONTENT
    assert agents == ["chosen"]


def test_tls_trusts_what_huggingface_hub_trusts(start_storage, connections, tmp_path, monkeypatch):
    certificate = make_certificate(tmp_path)
    address, _ = start_storage(certificate)
    with pytest.raises(HTTPError, match="CERTIFICATE_VERIFY_FAILED"):
        read(connections, f"{address}/content")
    huggingface_hub.close_session()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert read(connections, f"{address}/content") == CONTENT


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
    with pytest.raises(HTTPError, match="timed out"):
        read(Connections(silence_seconds=0.2), f"{address}/silent")


@pytest.mark.parametrize("before", ["/content", None], ids=["used", "new"])
def test_the_end_wakes_whoever_waits_for_an_answer(start_storage, before):
    address, seen = start_storage()
    connections, errors = Connections(silence_seconds=60.0), []
    if before:
        read(connections, f"{address}{before}")

    def wait() -> None:
        try:
            read(connections, f"{address}/silent")
        except HTTPError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while "/silent" not in seen.asked:
        time.sleep(0.01)
    started = time.monotonic()
    connections.end()
    thread.join()
    assert errors
    assert time.monotonic() - started < 2
