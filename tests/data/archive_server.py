"""A server on 127.0.0.1 that serves archives as the hub and Zenodo do, and misbehaves on demand."""

import hashlib
import io
import json
import re
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class ArchiveServer:
    """Files by path, what was asked of them, and how to misbehave.

    Attributes:
        files: Content by path; hub files at ``/datasets/<repo>/resolve/<revision>/<file>``.
        requests: ``(method, path, Range header, Authorization header)`` in order.
        close_after: Bytes of a body after which the connection is closed; one number a GET, used up in order.
        statuses: Answers to give instead of the file; used up in order, ``(status, headers)``.
        resumes: Whether Range is honoured.
        etag: What the hub states as the file's SHA-256, if not the true one.
    """

    def __init__(self):
        self.files, self.requests, self.close_after, self.statuses = {}, [], [], []
        self.resumes, self.etag, self.redirect_to = True, None, None
        self.address = ""

    def gets(self):
        return [request for request in self.requests if request[0] == "GET"]


@contextmanager
def serving():
    """The running server; no request goes past this machine."""
    server = ArchiveServer()
    http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.address = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self._answer(with_body=False)

        def do_GET(self):
            self._answer(with_body=True)

        def _answer(self, with_body):
            wanted = self.headers.get("Range")
            server.requests.append((self.command, self.path, wanted, self.headers.get("Authorization")))
            content = server.files.get(self.path)
            if server.statuses:
                self._refuse(*server.statuses.pop(0))
            elif content is None:
                self._refuse(404, {"X-Error-Code": "EntryNotFound"})
            elif self.path.startswith("/datasets/") and server.redirect_to:
                self._refuse(302, {**self._hub_headers(content), "Location": server.redirect_to})
            else:
                self._send(content, wanted, with_body)

        def _refuse(self, status, headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _hub_headers(self, content):
            return {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Etag": f'"{server.etag or hashlib.sha256(content).hexdigest()}"',
                "X-Linked-Size": str(len(content)),
                "ETag": '"0123"',
            }

        def _send(self, content, wanted, with_body):
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.resumes else 0
            if start >= len(content):
                return self._refuse(416, {"Content-Range": f"bytes */{len(content)}"})
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if self.path.startswith("/datasets/"):
                for name, value in self._hub_headers(content).items():
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            if with_body:
                body = content[start:]
                if server.close_after:
                    body = body[: server.close_after.pop(0)]
                    self.close_connection = True
                self.wfile.write(body)
            return None

    return Handler


def png(colour):
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (colour % 256, 40, 90)).save(content, "PNG")
    return content.getvalue()


def split_archive(name, class_names, per_split=None, extra=None):
    """A zip as the hub has it: ``<name>/<name>/<class_folder>/...`` and ``<name>/split_<name>.json``."""
    per_split = per_split or {"train": 3, "val": 1, "test": 2}
    split = {part: [] for part in per_split}
    files, number = {}, 0
    for label, class_name in enumerate(class_names):
        folder = class_name.replace(" ", "_")
        for part, n in per_split.items():
            for _ in range(n):
                path, number = f"{folder}/{number:04d}.png", number + 1
                files[f"{name}/{name}/{path}"] = png(number)
                split[part].append([path, label, class_name])
    files[f"{name}/split_{name}.json"] = json.dumps(split).encode()
    files["__MACOSX/._junk"] = b"junk"
    return zip_of({**files, **(extra or {})})


def zip_of(files):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def npz_of(labels_by_split, size=28, channels=3, **changed):
    """A MedMNIST file: uint8 images whose first pixel is their index, and labels as given."""
    arrays = {}
    for split, labels in labels_by_split.items():
        labels = np.asarray(labels, np.uint8)
        labels = labels[:, None] if labels.ndim == 1 else labels
        shape = (len(labels), size, size, 3) if channels == 3 else (len(labels), size, size)
        images = np.full(shape, 77, np.uint8)
        images.reshape(len(labels), -1)[:, 0] = np.arange(len(labels))
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
    content = io.BytesIO()
    np.savez_compressed(content, **(arrays | changed))
    return content.getvalue()
