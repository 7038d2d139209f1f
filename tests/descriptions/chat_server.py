"""A chat-completions server on 127.0.0.1 that does what a script says, request after request."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler", dict[str, Any]], None]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the next reply of the script."""

    server: ScriptedServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            self.server.times.append(time.monotonic())
            script = self.server.script
            reply = script.pop(0) if len(script) > 1 else script[0]
        reply(self, body)

    def send(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@dataclass
class Script:
    """What the test sees of the server: its address, what was asked, and the replies left."""

    url: str
    server: ScriptedServer = field(repr=False)

    @property
    def requests(self) -> list[dict[str, Any]]:
        return self.server.requests

    @property
    def headers(self) -> list[dict[str, str]]:
        return self.server.headers

    @property
    def pauses(self) -> list[float]:
        times = self.server.times
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    def play(self, *replies: Reply) -> None:
        """The replies to come; the last one is given for ever."""
        self.server.script = list(replies)


class ScriptedServer(ThreadingHTTPServer):
    """The server's state."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.script: list[Reply] = [good()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left is no error here."""


@contextmanager
def running() -> Iterator[Script]:
    """The server, listening."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield Script(f"http://127.0.0.1:{server.server_address[1]}/v1", server)
    finally:
        server.shutdown()
        server.server_close()


def completion(content: Any, finish: str = "stop", **more: Any) -> str:
    """The JSON of a chat completion."""
    message = {"role": "assistant", "content": content, **more.pop("message", {})}
    return json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "model": "test-model",
            "choices": [{"index": 0, "finish_reason": finish, "message": message}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150},
            **more,
        }
    )


def sentence(name: str, number: int, modality: str = "chest X-ray") -> str:
    """A sentence of 14 words of which four are its own."""
    return (
        f"In {name} this {modality} shows sign{number} beside region{number} with texture{number} "
        f"and a margin{number} drawn softly."
    )


def class_asked(body: dict[str, Any]) -> str:
    """The class that a prompt asks for."""
    return str(body["messages"][1]["content"].split('of the class "')[1].split('"')[0])


def count_asked(body: dict[str, Any]) -> int:
    """The number of sentences that a prompt asks for."""
    return int(body["messages"][1]["content"].split()[1])


def fresh(handler: Handler, body: dict[str, Any], count: int | None = None) -> list[str]:
    """Sentences that this server has not given before."""
    with handler.server.lock:
        first = getattr(handler.server, "given", 0)
        handler.server.given = first + (count or count_asked(body))  # type: ignore[attr-defined]
    name = class_asked(body)
    return [sentence(name, first + i) for i in range(count or count_asked(body))]


def good(form: Callable[[Sequence[str]], str] | None = None, count: int | None = None, **more: Any) -> Reply:
    """As many new sentences as asked for (or ``count``), written as ``form`` says."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        sentences = fresh(handler, body, count)
        text = form(sentences) if form else json.dumps({"sentences": sentences})
        handler.send(200, completion(text, **more))

    return reply


def says(content: Any, finish: str = "stop", **more: Any) -> Reply:
    """A fixed content."""
    return lambda handler, body: handler.send(200, completion(content, finish, **more))


def status(code: int, message: str = "no", **headers: str) -> Reply:
    """An error in OpenAI's form."""
    text = json.dumps({"error": {"message": message, "type": "error"}})
    return lambda handler, body: handler.send(code, text, **headers)


def raw(text: str, kind: str = "application/json", code: int = 200) -> Reply:
    """Any body."""
    return lambda handler, body: handler.send(code, text, kind)


def hang(seconds: float = 2.0) -> Reply:
    """No byte for so long."""
    return lambda handler, body: time.sleep(seconds)


def close(handler: Handler, body: dict[str, Any]) -> None:
    """The connection ends without an answer."""
    handler.close_connection = True
    handler.connection.close()


def half(handler: Handler, body: dict[str, Any]) -> None:
    """The connection ends in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.close()


def without(*formats: str) -> Reply:
    """A server that rejects these response formats with 400 and answers otherwise."""

    def reply(handler: Handler, body: dict[str, Any]) -> None:
        asked = body.get("response_format", {}).get("type")
        if asked in formats:
            status(400, f"response_format type {asked} is not supported by this model")(handler, body)
        else:
            good()(handler, body)

    return reply
