"""A web server on this machine that answers as the Hugging Face Hub and plain file servers do."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FarAway(ThreadingHTTPServer):
    """``files``: {path: content}; of a dataset the path is ``/datasets/OWNER/NAME/resolve/REVISION/PATH``.

    ``requests``: what was asked for: (method, path, Range header). ``cuts``: so many answers break off half-way.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.cuts = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def dataset(self, name: str, revision: str, files: dict[str, bytes]) -> None:
        self.files |= {f"/datasets/{name}/resolve/{revision}/{path}": data for path, data in files.items()}


class _Handler(BaseHTTPRequestHandler):
    server: FarAway
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith("/api/datasets/"):
            self._send(200, self._tree(*path.removeprefix("/api/datasets/").split("/", 4)), {})
            return
        data = self.server.files.get(path)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        tag = f'"{hashlib.sha256(data).hexdigest()}"'
        revision = path.split("/")[5] if path.startswith("/datasets/") else ""
        headers = {"ETag": tag, "X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        wanted, condition = self.headers.get("Range"), self.headers.get("If-Range")
        if wanted and (condition is None or condition == tag):
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            self._send(206, data[begin:], headers)
        else:
            self._send(200, data, headers)

    def _tree(self, owner: str, name: str, kind: str, revision: str, folder: str = "") -> bytes:
        start = f"/datasets/{owner}/{name}/resolve/{revision}/"
        rows = []
        for path, data in self.server.files.items():
            inner = path.removeprefix(start)
            if path.startswith(start) and inner.startswith(folder):
                digest = hashlib.sha256(data).hexdigest()
                lfs = {"oid": digest, "size": len(data), "pointerSize": 100}
                rows.append({"type": "file", "path": inner, "size": len(data), "oid": digest[:40], "lfs": lfs})
        return json.dumps(rows).encode()

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.server.cuts > 0 and len(data) > 1000
            self.server.cuts -= cut
            self.wfile.write(data[: len(data) // 2] if cut else data)
            if cut:
                self.close_connection = True


@contextmanager
def far_away() -> Iterator[FarAway]:
    """The server, running."""
    server = FarAway()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
