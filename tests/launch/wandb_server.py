"""A server that wandb's own client uploads to, as far as the client can tell: GraphQL, the stream of a run's files, and
storage. It keeps a run's history step by step, and notes every step that comes twice.

Written after what wandb 0.31 asks (``wandb-core``'s queries); the real server cannot run here.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Uploads:
    """What arrived. ``history``: {run: {step: line}}; ``twice``: (run, step, whether it is another line now)."""

    def __init__(self) -> None:
        self.history: dict[str, dict[int, dict[str, Any]]] = {}
        self.twice: list[tuple[str, int, bool]] = []
        self.ended: dict[str, int] = {}
        self.files: dict[str, bytes] = {}
        self.keys: set[str] = set()
        self.requests = 0
        self.before_stream: Callable[[dict[str, Any]], None] = lambda pieces: None  # called when a piece arrives
        self.lock = threading.Lock()

    def stream(self, run: str, pieces: dict[str, Any]) -> None:
        """A piece of the stream of a run's files: lines, each file's from an offset on."""
        with self.lock:
            for name, piece in (pieces.get("files") or {}).items():
                if name == "wandb-history.jsonl":
                    there = self.history.setdefault(run, {})
                    for line in map(json.loads, piece["content"]):
                        step = int(line["_step"])
                        if step in there:
                            self.twice.append((run, step, there[step] != line))
                        there[step] = line
            if pieces.get("complete"):
                self.ended[run] = pieces.get("exitcode", 0)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self._body() or b"{}")
        uploads = self.server.uploads
        uploads.keys.add(self.headers.get("authorization", ""))
        if self.path.endswith("/file_stream"):
            run = self.path.split("/")[-2]
            uploads.before_stream(body)
            uploads.stream(run, body)
            self._answer({"exitcode": None, "limits": {}})
        else:
            self._answer({"data": self._graphql(body.get("query") or "", body.get("variables") or {})})

    def do_PUT(self) -> None:
        self.server.uploads.files[self.path] = self._body()
        self._answer({})

    def _graphql(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        entity, project = given.get("entity") or "team", given.get("project") or "hanse"
        place = {"id": "p", "name": project, "entity": {"id": "e", "name": entity}}
        if "RunResumeStatus" in query:
            lines = self.server.uploads.history.get(given["name"])
            bucket = lines and {
                "id": "b", "name": given["name"], "summaryMetrics": "{}", "displayName": given["name"],
                "logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(lines[max(lines)])]), "eventsTail": "[]", "config": "{}",
                "tags": [], "wandbConfig": "{}",
            }  # fmt: skip
            return {"model": {"id": "p", "name": project, "entity": place["entity"], "bucket": bucket}}
        if "upsertBucket" in query:
            lines = self.server.uploads.history.get(given.get("name") or "", {})
            bucket = {"id": "b", "name": given.get("name"), "displayName": given.get("displayName"), "description": "",
                      "config": "{}", "sweepName": None, "historyLineCount": len(lines), "project": place}  # fmt: skip
            return {"upsertBucket": {"bucket": bucket, "inserted": not lines}}
        if "createRunFiles" in query:
            url = f"http://127.0.0.1:{self.server.server_port}/storage/{given['run']}"
            files = [{"name": name, "uploadUrl": f"{url}/{name}"} for name in given["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "serverInfo" in query:
            return {"serverInfo": {"features": []}}
        return {}

    def _body(self) -> bytes:
        self.server.uploads.requests += 1
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Server(ThreadingHTTPServer):
    """The server, on a free port of the loopback interface."""

    daemon_threads = True

    def __init__(self) -> None:
        self.uploads = Uploads()
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"
