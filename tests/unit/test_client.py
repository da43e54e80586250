"""The command line's client: whatever answers, an `Error` says what to do."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from freshrank.client import call
from freshrank.errors import DataError, TransportError


class Peer(HTTPServer):
    """Answers every request with the same bytes."""

    answer = b""


class Handler(BaseHTTPRequestHandler):
    """Sends what the peer was told to."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Peer)
        self.wfile.write(self.server.answer)

    def log_message(self, *_arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def peer() -> Iterator[Peer]:
    with Peer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(peer: Peer, answer: bytes) -> object:
    peer.answer = answer
    return call(f"http://127.0.0.1:{peer.server_port}/", "/v1/version")


def test_an_answer_is_decoded(peer: Peer) -> None:
    assert ask(peer, b'HTTP/1.0 200 OK\r\n\r\n{"version": "1"}') == {"version": "1"}


@pytest.mark.parametrize("body", [b"<html>", b"\xff\xfe", b""])
def test_something_else_that_answers_is_named(peer: Peer, body: bytes) -> None:
    with pytest.raises(DataError, match="does not answer as freshrank does"):
        ask(peer, b"HTTP/1.0 200 OK\r\n\r\n" + body)


def test_a_refusal_shows_its_problem_document(peer: Peer) -> None:
    problem = b'{"title":"T","detail":"D","errors":[{"pointer":"#/user","detail":"too long"}]}'
    with pytest.raises(DataError, match="422 T; D; #/user: too long"):
        ask(peer, b"HTTP/1.0 422 Unprocessable\r\n\r\n" + problem)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'"text"', b"{}", b'{"errors": [1]}'])
def test_a_refusal_without_one_shows_its_status(peer: Peer, body: bytes) -> None:
    with pytest.raises(DataError, match=r"^502 Bad Gateway$"):
        ask(peer, b"HTTP/1.0 502 Bad Gateway\r\n\r\n" + body)


@pytest.mark.parametrize(
    "answer", [b"", b"SSH-2.0\r\n", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n{"]
)
def test_a_broken_answer_is_no_answer(peer: Peer, answer: bytes) -> None:
    with pytest.raises(TransportError, match="Is the service running"):
        ask(peer, answer)


@pytest.mark.parametrize("base", ["127.0.0.1:8000", "http://127.0.0.1:eight", "http://a b"])
def test_what_is_no_address_is_named(base: str) -> None:
    with pytest.raises(DataError, match=r"127|a b"):
        call(base, "/v1/version")


def test_a_key_that_no_header_can_carry_is_named() -> None:
    with pytest.raises(DataError, match="key"):
        call("http://127.0.0.1:9", "/v1/version", key="schlüssel-ключ")
