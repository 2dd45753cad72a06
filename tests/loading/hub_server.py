"""A hub on 127.0.0.1: serves one model, counts its requests, and fails in the ways the real one does."""

from __future__ import annotations

import hashlib
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class LoopHub:
    """Serves the files of a folder as `owner/tiny`.

    Args:
        folder: The model.
        status: Answer everything with this status.
        code: The hub's own error code, such as `GatedRepo`.
        cut: Send only this many bytes of a weight file, then close.
        stalls: Accept every connection and request, and say nothing until the end.
        late: Seconds until each answer.
        certificate: File with a certificate and its key: the hub then speaks TLS.
    """

    def __init__(
        self,
        folder: Path,
        *,
        status: int = 200,
        code: str | None = None,
        cut: int | None = None,
        stalls: bool = False,
        late: float = 0.0,
        certificate: Path | None = None,
    ) -> None:
        self.folder, self.status, self.code, self.cut, self.stalls = folder, status, code, cut, stalls
        self.is_over = threading.Event()
        self.requests: list[str] = []
        self.tokens: list[str | None] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.late, self.scheme = late, "http" if certificate is None else "https"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> LoopHub:
        self.thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.is_over.set()
        self.server.shutdown()
        self.server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self, body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, body=False)

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def _answer(self, handler: Any, body: bool) -> None:
        path = handler.path.split("?")[0]
        self.requests.append(f"{handler.command} {path}")
        self.tokens.append(handler.headers.get("Authorization"))
        self.is_over.wait(self.late)
        if self.stalls:
            self.is_over.wait()
            handler.close_connection = True
            return None
        if self.status != 200:
            headers = {"X-Error-Code": self.code} if self.code else {}
            return self._send(handler, self.status, b'{"error": "no"}', headers, body)
        files = {file.name: file for file in self.folder.iterdir()}
        if path.startswith("/api/models/owner/tiny/revision/") or path == "/api/models/owner/tiny":
            answer = {
                "_id": "1",
                "id": "owner/tiny",
                "sha": COMMIT,
                "siblings": [{"rfilename": name} for name in files],
            }
            return self._send(handler, 200, json.dumps(answer).encode(), {}, body)
        if path.startswith("/api/models/owner/tiny/tree/"):
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                for name, file in files.items()
            ]
            return self._send(handler, 200, json.dumps(entries).encode(), {}, body)
        name = path.rpartition("/")[2]
        if path.startswith("/owner/tiny/resolve/") and name in files:
            data = files[name].read_bytes()
            headers = {"ETag": f'"{_etag(files[name])}"', "X-Repo-Commit": COMMIT}
            cut = self.cut if name.endswith(".safetensors") else None
            return self._send(handler, 200, data, headers, body, cut)
        return self._send(handler, 404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

    @staticmethod
    def _send(
        handler: Any, status: int, data: bytes, headers: dict[str, Any], body: bool, cut: int | None = None
    ) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": len(data), "Content-Type": "application/json", **headers}.items():
            handler.send_header(name, str(value))
        handler.end_headers()
        if body:
            handler.wfile.write(data if cut is None else data[:cut])
        handler.close_connection = True


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
