"""A fake REST API on 127.0.0.1 that sends the same response to every request."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer


class RestApi:
    """Serves while its ``with`` block runs; ``requests`` holds path, authorization and body."""

    def __init__(self, status: int, answer: bytes = b""):
        requests = self.requests = list[tuple[str, str, str]]()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                requests.append((self.path, self.headers["Authorization"], body))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> RestApi:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
