"""A server shaped like the Hugging Face Hub, on a free port of 127.0.0.1."""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Seen:
    """A request that the server received."""

    method: str
    path: str
    range: str | None
    authorization: str | None


@dataclass
class FakeHub:
    """The server, with one repository.

    Attributes:
        repo: Id of the repository.
        files: Content of its files by name.
        refusal: Status and headers of every response, instead of the content.
        cuts: Number of downloads of each file to interrupt half way.
        seen: The requests, in order.
    """

    repo: str
    files: dict[str, bytes]
    refusal: tuple[int, dict[str, str]] | None = None
    cuts: dict[str, int] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    def __enter__(self) -> Self:
        hub = self

        class Handler(_Handler):
            serves = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self, name: str) -> list[Seen]:
        return [s for s in self.seen if s.method == "GET" and s.path.endswith(f"/{name}")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    serves: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._respond()

    def do_GET(self) -> None:
        self._respond()

    def _respond(self) -> None:
        hub = self.serves
        path = self.path.partition("?")[0]
        hub.seen.append(
            Seen(self.command, path, self.headers.get("Range"), self.headers.get("Authorization"))
        )
        if hub.refusal is not None:
            status, headers = hub.refusal
            self._send(status, b"{}", headers)
        elif path == (api := f"/api/models/{hub.repo}") or path.startswith(f"{api}/revision/"):
            siblings = [{"rfilename": name} for name in hub.files]
            self._json({"id": hub.repo, "sha": COMMIT, "siblings": siblings, "tags": []})
        elif path == f"/api/models/{hub.repo}/auth-check":
            self._json({})
        elif path == f"/api/models/{hub.repo}/tree/{COMMIT}":
            self._json(
                [
                    {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
                    for name, data in hub.files.items()
                ]
            )
        elif path.startswith(resolve := f"/{hub.repo}/resolve/{COMMIT}/"):
            self._file(path.removeprefix(resolve))
        else:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        hub = self.serves
        data = hub.files[name]
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if requested := self.headers.get("Range"):
            start = int(requested.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            status = 206
        part = data[start:]
        if self.command == "GET" and hub.cuts.get(name, 0):
            hub.cuts[name] -= 1
            self._send(status, part[: len(part) // 2], headers, promised=len(part))
            self.close_connection = True
        else:
            self._send(status, part, headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], promised: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) if promised is None else promised))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


@contextmanager
def resetting_server() -> Iterator[str]:
    """The address of a server that resets each connection, as some firewalls do."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def reset() -> None:
            with suppress(OSError):  # closed
                while True:
                    connection, _ = listening.accept()
                    connection.recv(1)
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.close()

        resetting = threading.Thread(target=reset)
        resetting.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)
        resetting.join()
