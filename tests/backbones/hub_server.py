"""A stand-in for the model hub on 127.0.0.1: its listing, its metadata, its files, and its refusals."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER_COMMIT = "fedcba9876543210fedcba9876543210fedcba98"
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".zip")
"""The hub keeps files of these names apart (LFS), and states the SHA-256 of those alone."""


@dataclass
class HubServer:
    """Repositories by name, each a mapping of file name to content, and how to misbehave.

    Attributes:
        repositories: models; ``datasets/owner/name`` for a dataset.
        plain: files at plain addresses, by path.
        requests: ``(method, path, Range, Authorization)`` in order.
        gated: repositories whose files are given only with a token.
        close_after: bytes of a large body after which the connection is closed; used up in order.
        etags: SHA-256 to state instead of the true one, by file name.
        cards: card data by repository.
        commit: of all repositories.
        gated_status: answer to who may not have a file of a gated repository.
        hold_after: bytes of a larger body after which the answer stands still: ``held`` is set, and the
            connection is closed once ``release`` is.
    """

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    plain: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    close_after: list[int] = field(default_factory=list)
    etags: dict[str, str] = field(default_factory=dict)
    cards: dict[str, dict[str, str]] = field(default_factory=dict)
    commit: str = COMMIT
    gated_status: int = 401
    address: str = ""
    hold_after: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)

    def publish(self, repository: str, folder: Path) -> None:
        """Take a folder's files for a repository's."""
        self.repositories[repository] = {
            path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
        }

    def given(self, method: str = "GET") -> list[str]:
        """Names of files that were asked for, in order; listings and the like are left out."""
        paths = [path for kind, path, _, _ in self.requests if kind == method and "/resolve/" in path]
        return [unquote(path).rpartition("/")[2] for path in paths]


@contextmanager
def serving() -> Iterator[HubServer]:
    """The running server; no request goes past this machine."""
    server = HubServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def _handler(server: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            token = self.headers.get("Authorization")
            server.requests.append((self.command, self.path, self.headers.get("Range"), token))
            path = unquote(urlsplit(self.path).path)
            if path in server.plain:
                self.send_file(server.plain[path], {})
            elif path.startswith("/api/models/"):
                self.answer_listing(path.removeprefix("/api/models/"))
            elif "/resolve/" in path:
                self.answer_file(path)
            else:
                self.refuse(404, "EntryNotFound")

        def answer_listing(self, rest: str) -> None:
            owner, name, *kind = rest.split("/")
            repository, files = f"{owner}/{name}", server.repositories.get(f"{owner}/{name}")
            if files is None:
                return self.refuse(404, "RepoNotFound")
            if len(kind) > 1 and kind[1] not in ("main", server.commit):
                return self.refuse(404, "RevisionNotFound")
            if kind[:1] == ["tree"]:
                return self.send_json([tree_entry(file, content) for file, content in files.items()])
            return self.send_json(
                {
                    "id": repository,
                    "sha": server.commit,
                    "siblings": [{"rfilename": file} for file in files],
                    "cardData": server.cards.get(repository, {}),
                    "gated": "auto" if repository in server.gated else False,
                }
            )

        def answer_file(self, path: str) -> None:
            repository, _, rest = path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            content = server.repositories.get(repository, {}).get(file)
            if repository not in server.repositories:
                return self.refuse(404, "RepoNotFound")
            if repository in server.gated and not self.headers.get("Authorization"):
                return self.refuse(server.gated_status, "GatedRepo")
            if revision not in ("main", server.commit):
                return self.refuse(404, "RevisionNotFound")
            if content is None:
                return self.refuse(404, "EntryNotFound")
            headers = {"X-Repo-Commit": server.commit, "ETag": f'"{git_hash(content)}"'}
            if file.endswith(LARGE):
                headers["X-Linked-Etag"] = f'"{server.etags.get(file) or sha256(content)}"'
                headers["X-Linked-Size"] = str(len(content))
            return self.send_file(content, headers)

        def refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def send_json(self, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_file(self, content: bytes, headers: dict[str, str]) -> None:
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            self.send_response(206 if start else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if self.command == "GET":
                body = content[start:]
                if server.close_after and len(body) > server.close_after[0]:
                    body = body[: server.close_after.pop(0)]
                    self.close_connection = True
                if server.hold_after is not None and len(body) > server.hold_after:
                    self.wfile.write(body[: server.hold_after])
                    self.wfile.flush()
                    server.held.set()
                    server.release.wait(60)
                    self.close_connection = True
                    return
                self.wfile.write(body)

    return Handler


def tree_entry(file: str, content: bytes) -> dict[str, Any]:
    """A file as the hub lists it in a tree."""
    entry: dict[str, Any] = {"type": "file", "path": file, "size": len(content), "oid": git_hash(content)}
    if file.endswith(LARGE):
        entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return entry


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
