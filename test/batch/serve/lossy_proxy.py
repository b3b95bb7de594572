"""A proxy before the service that loses a reply, so that the client repeats its request."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
from echo_jobs import SECONDS


class LossyProxy(ThreadingHTTPServer):
    """Passes requests on to a service; of the first create it loses the reply.

    Args:
        status: of the reply that is sent instead; 0 to close the connection without any.
    """

    daemon_threads = True

    def __init__(self, url: str, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = url.removesuffix("/v1")
        self.status = status
        self.creates: list[str] = []

    def __enter__(self) -> LossyProxy:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: LossyProxy

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        headers = {name: self.headers[name] for name in ("content-type", "authorization")}
        url = self.server.target + self.path
        reply = httpx.post(url, content=content, headers=headers, timeout=SECONDS, trust_env=False)
        status, body = reply.status_code, reply.content
        if self.path == "/v1/batches":
            self.server.creates.append(reply.json()["id"])
            if len(self.server.creates) == 1:
                self.close_connection = True
                if not self.server.status:
                    return
                status, body = self.server.status, b"{}"
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass
