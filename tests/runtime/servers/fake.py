"""A server in a thread that answers as recorded or as a test says, over real sockets."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from specgen.runtime.servers.http import HttpOptions
from specgen.runtime.servers.server import Server, open_server
from specgen.runtime.servers.values import Address

KEY = "sk-not-for-anybody"
STREAMS = Path(__file__).parent / "streams"
LLAMA_STREAM, VLLM_STREAM = STREAMS / "llama-server-b11549-draft.txt", STREAMS / "vllm-0.32.0-ngram.txt"
LLAMA_PAGES: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "coder", "owned_by": "llamacpp", "meta": {"n_ctx_train": 32768}}]},
    "/props": {
        "default_generation_settings": {"n_ctx": 4096},
        "build_info": "b11549",
        "model_path": "/models/coder.gguf",
        "endpoint_metrics": True,
    },
}
VLLM_PAGES: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "smol", "owned_by": "vllm", "root": "/models/smol", "max_model_len": 2048}]},
    "/version": {"version": "0.32.0"},
}
LM_STUDIO_PAGES: dict[str, Any] = {
    "/v1/models": {"data": [{"id": "big"}]},
    "/api/v0/models": {"data": [{"id": "big", "max_context_length": 4096}]},
}
PLAIN_PAGES: dict[str, Any] = {"/v1/models": {"data": [{"id": "any", "owned_by": "somebody"}]}}


@dataclass
class Reply:
    """An answer: its status, headers, and the parts of its body, each sent on its own.

    Args:
        is_cut: Break the connection in the middle of the body.
        held: Wait for this event before the last part.
    """

    parts: Sequence[bytes]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})
    is_cut: bool = False
    held: threading.Event | None = None


def as_json(document: object, status: int = 200, **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([json.dumps(document).encode()], status, {"Content-Type": "application/json", **named})


def as_events(*documents: object, done: bool = True) -> Reply:
    parts = [f"data: {json.dumps(document)}\n\n".encode() for document in documents]
    return Reply([*parts, *([b"data: [DONE]\n\n"] if done else [])])


def chunk(text: str = "", finish: str | None = None, **fields: object) -> dict[str, Any]:
    """Returns an event of a stream in OpenAI's format."""
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}], **fields}


def recorded(path: Path) -> Reply:
    """Returns a recorded stream, an event a part."""
    return Reply([event + b"\n\n" for event in path.read_bytes().split(b"\n\n") if event.strip()])


def plain_answer(text: str = "one two", num_prompt_tokens: int = 9, num_cached_tokens: int = 0) -> Reply:
    """Returns an answer in two pieces, by a server that reports OpenAI's usage and nothing else."""
    first, space, last = text.partition(" ")
    cached = {"cached_tokens": num_cached_tokens}
    usage = {"completion_tokens": 2, "prompt_tokens": num_prompt_tokens, "prompt_tokens_details": cached}
    return as_events(chunk(first), chunk(space + last, "stop"), chunk(usage=usage))


def timed(seconds: float, text: str = "abc", num_tokens: int = 3, **drafts: int) -> Reply:
    """Returns an answer that took llama-server so long after its first token; `drafts` are its counters."""
    timings: dict[str, Any] = {"predicted_n": num_tokens, "predicted_ms": 1000 * seconds, **drafts}
    usage = {"completion_tokens": num_tokens, "prompt_tokens": 4}
    return as_events(chunk(text, "length"), chunk(usage=usage, timings=timings))


def opened(url: str, key: str = "", **options: Any) -> Server:
    """Returns a server, asked without waits between retries."""
    patience = {"timeout_seconds": 10.0, "sleep": lambda _: None, **options}
    return open_server(Address(url, key), "", HttpOptions(**patience))


Answer = Reply | Callable[[dict[str, Any]], Reply]
"""A reply, or what makes one of a request."""


@dataclass
class Fake:
    """What a fake server was asked, and what it answers next."""

    pages: dict[str, Any]
    replies: list[Answer]
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    """Connections that may wait; with the default of 5, more at once are reset."""


@contextmanager
def serving(pages: dict[str, Any], *replies: Answer, certificate: Path | None = None) -> Iterator[Fake]:
    """Serves pages to GET, as JSON or text; POSTs get the replies in turn, the last one again and again.

    With a file of a certificate and its key, it serves by https.
    """
    fake = Fake(dict(pages), list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            fake.headers.append(dict(self.headers))
            page = fake.pages.get(self.path)
            if callable(page):
                page = page()
            if page is None:
                self._send(as_json({"error": {"message": "not found"}}, 404))
            elif isinstance(page, Reply):
                self._send(page)
            elif isinstance(page, str):
                self._send(Reply([page.encode()], 200, {"Content-Type": "text/plain"}))
            else:
                self._send(as_json(page))

        def do_POST(self) -> None:
            fake.headers.append(dict(self.headers))
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            fake.requests.append(request)
            reply = fake.replies.pop(0) if len(fake.replies) > 1 else fake.replies[0]
            self._send(reply if isinstance(reply, Reply) else reply(request))

        def _send(self, reply: Reply) -> None:
            self.close_connection = True
            self.send_response(reply.status)
            for name, value in {"Connection": "close", **reply.headers}.items():
                self.send_header(name, value)
            if reply.is_cut:
                self.send_header("Content-Length", str(sum(map(len, reply.parts)) + 100))
            self.end_headers()
            try:
                for index, data in enumerate(reply.parts):
                    if reply.held is not None and index == len(reply.parts) - 1:
                        reply.held.wait(10)
                    self.wfile.write(data)
                    self.wfile.flush()
            except OSError:
                return  # the client has left

        def log_message(self, *arguments: object) -> None:
            return

    server = _Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    fake.url = f"{'https' if certificate else 'http'}://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
