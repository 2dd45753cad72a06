"""Talks to one server over HTTP: time limits, retries before the first byte, and errors with stable codes."""

from __future__ import annotations

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specgen.core.errors import (
    PromptError,
    ServerBusyError,
    ServerDeniedError,
    ServerError,
    ServerUnreachableError,
    SettingsError,
    first_line,
)
from specgen.runtime.servers import KEY_VARIABLE
from specgen.runtime.servers.values import Address, Json, part, word

if TYPE_CHECKING:
    import httpx2

MAX_EVENT_BYTES = 2**20
MAX_ANSWER_BYTES = 64 * 2**20
MAX_DOCUMENT_BYTES = 16 * 2**20
NUM_RETRIES = 2
LONGEST_WAIT_SECONDS = 30.0
"""Longest wait for a retry; a `Retry-After` above it is not waited for."""
PROBE_SECONDS = 10.0
_BUSY = (429, 503)


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """How patient a client is.

    Args:
        timeout_seconds: Longest silence between two events of an answer, and before the first one.
        num_retries: For a failed connection, and for the answers 429 and 503. Timed runs use 0.
        sleep: Waits between retries.
    """

    timeout_seconds: float = 300.0
    num_retries: int = NUM_RETRIES
    sleep: Callable[[float], None] = time.sleep


class ServerClient:
    """Sends requests to one server. It follows no redirects and uses no proxy for this machine itself.

    A client may be used by several threads. `num_retried` counts the requests that were sent again.
    """

    def __init__(self, address: Address, options: HttpOptions | None = None) -> None:
        import httpx2  # takes 80 ms

        self.address = address
        self.options = options or HttpOptions()
        self.num_retried = 0
        self._library = httpx2
        headers = {"User-Agent": "specgen"} | ({"Authorization": f"Bearer {address.key}"} if address.key else {})
        # Where no request can use TLS, the authorities' certificates are not read, which takes 30 ms: this trusts none.
        verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if address.url.startswith("http:") else True
        try:
            # A transport of our own takes SSL_CERT_FILE from the environment, but no proxy.
            limits = httpx2.Limits(max_connections=None)  # callers decide how many requests they send at a time
            transport = httpx2.HTTPTransport(verify=verify, limits=limits) if address.is_loopback else None
            self._client = httpx2.Client(headers=headers, follow_redirects=False, limits=limits, transport=transport)
        except (OSError, ValueError) as error:  # a file of certificates, or a proxy's address
            raise SettingsError(f"can't prepare the connection to {address.host}: {first_line(error)}") from None

    def close(self) -> None:
        """Closes its connections. Can be called again."""
        self._client.close()

    def get(self, path: str) -> Json | None:
        """Returns a JSON object; None if the server has no such page, or not as a JSON object."""
        text = self.get_text(path)
        return None if text is None else _object(text)

    def get_text(self, path: str) -> str | None:
        """Returns a page as text; None if the server has none there.

        Raises:
            ServerError: The server can't be reached, refuses the key, or is still busy after the retries.
        """
        with self._opened("GET", path, None, timeout=PROBE_SECONDS) as response:
            if response.status_code in (401, 403):
                raise self._failure(response)
            return self._body(response) if response.status_code == 200 else None

    def post(self, path: str, body: Json) -> Json:
        """Returns the JSON object that answers a request.

        Raises:
            SettingsError: The server refuses the request.
            PromptError: The prompt is longer than the window.
            ServerError: The server can't be reached, or fails.
        """
        with self._opened("POST", path, body) as response:
            if response.status_code != 200:
                raise self._failure(response)
            text = self._body(response)
        if (document := _object(text)) is None:
            raise ServerError(f"{self.address.host} sent no JSON object for {path}")
        return document

    @contextmanager
    def events(self, path: str, body: Json) -> Iterator[EventStream]:
        """Sends a request and gives the events of its answer; raises like `post`, also during the iteration."""
        with self._opened("POST", path, body) as response:
            if response.status_code != 200:
                raise self._failure(response)
            yield EventStream(self, response)

    @contextmanager
    def _opened(
        self, method: str, path: str, body: Json | None, *, timeout: float | None = None
    ) -> Iterator[httpx2.Response]:
        response = self._send(method, path, body, timeout)
        try:
            yield response
        finally:
            with suppress(self._library.HTTPError):
                response.close()

    def _send(self, method: str, path: str, body: Json | None, timeout: float | None) -> httpx2.Response:
        """Sends a request, again if it could not connect or the server was busy; the body of the answer is unread."""
        times = self._library.Timeout(timeout or self.options.timeout_seconds, connect=5.0, write=30.0)
        for attempt in range(self.options.num_retries + 1):
            is_last = attempt == self.options.num_retries
            wait: float | None = 0.5 * 2**attempt
            try:
                request = self._client.build_request(method, self.address.url + path, json=body, timeout=times)
                response = self._client.send(request, stream=True)
            except (self._library.ConnectError, self._library.ConnectTimeout) as error:
                if is_last:
                    raise self.unreachable(error) from None
            except (self._library.HTTPError, self._library.InvalidURL, OSError) as error:
                raise self.unreachable(error) from None
            else:
                wait = _wait_seconds(response.headers.get("retry-after"), wait)
                if response.status_code not in _BUSY or is_last or wait is None:
                    return response
                response.close()
            self.num_retried += 1
            self.options.sleep(wait or 0.0)
        raise AssertionError  # the last attempt returns or raises

    def _body(self, response: httpx2.Response) -> str:
        data = bytearray()
        try:
            for chunk in response.iter_bytes():
                data += chunk
                if len(data) > MAX_DOCUMENT_BYTES:
                    raise ServerError(f"the answer of {self.address.host} exceeds {MAX_DOCUMENT_BYTES >> 20} MiB")
        except (self._library.HTTPError, OSError) as error:
            raise ServerError(f"{self.address.host} broke off its answer: {self._safe(error)}") from None
        return data.decode("utf-8", "replace")

    def _failure(self, response: httpx2.Response) -> Exception:
        """Returns the error for an answer that is not 200."""
        status, host = response.status_code, self.address.host
        try:
            said = self.clean(_message(self._body(response)))
        except ServerError:
            said = ""
        text = f": {said}" if said else ""
        if status in (401, 403):
            return ServerDeniedError(f"{host} refused the key (HTTP {status}){text}", f"set {KEY_VARIABLE}")
        if status in _BUSY:
            return ServerBusyError(f"{host} is busy (HTTP {status}){text}", "try again later")
        if status == 404:
            return SettingsError(f"{host} does not have what was asked for (HTTP 404){text}", "check --server and -t")
        if status in (400, 413, 422):
            is_long = any(part_ in said.lower() for part_ in ("context", "maximum model length", "too long"))
            if is_long or status == 413:
                return PromptError(f"{host} refused the prompt{text}", "shorten it, or ask for fewer tokens with -n")
            return SettingsError(f"{host} refused the request (HTTP {status}){text}")
        if 300 <= status < 400:
            return ServerError(f"{host} redirects (HTTP {status}), which is not followed", "give the final address")
        return ServerError(f"{host} failed (HTTP {status}){text}", "see the server's log")

    def unreachable(self, error: Exception) -> ServerUnreachableError:
        """Returns the error for a connection that failed, or a server that stays silent."""
        is_slow = isinstance(error, self._library.TimeoutException)
        why = "no answer in time" if is_slow else self._safe(error)
        hint = "raise --timeout, or check the server" if is_slow else "check the address, and that the server runs"
        return ServerUnreachableError(f"can't reach {self.address.host}: {why}", hint)

    def clean(self, text: str) -> str:
        """Returns a server's message on one line, at most 200 characters, without the key if it repeats it."""
        text = " ".join(text.replace(self.address.key, "***").split() if self.address.key else text.split())
        return text if len(text) <= 200 else text[:197] + "..."

    def _safe(self, error: Exception) -> str:
        return self.clean(first_line(error))


class EventStream:
    """The events of one answer, as JSON objects. `close` from a signal handler ends the iteration."""

    def __init__(self, client: ServerClient, response: httpx2.Response) -> None:
        self._client, self._response = client, response
        self._library = client._library
        self.is_closed = False

    def close(self) -> None:
        """Ends the connection, on which engines stop generating. Safe to call from a signal handler."""
        self.is_closed = True
        stream = self._response.extensions.get("network_stream")
        connection = stream.get_extra_info("socket") if stream is not None else None
        if connection is not None:
            with suppress(OSError):
                # Wakes a read that waits; closing the response here could interrupt its own bookkeeping.
                connection.shutdown(socket.SHUT_RDWR)

    def __iter__(self) -> Iterator[Json]:
        """Yields events up to `[DONE]`.

        Raises:
            ServerError: The stream breaks off, is too long, or is not a stream of JSON objects.
            ServerUnreachableError: No first event in time.
        """
        num_bytes = num_events = 0
        host, library = self._client.address.host, self._library
        try:
            for event in library.EventSource(self._response, max_event_size=MAX_EVENT_BYTES):
                num_bytes += len(event.data)
                if num_bytes > MAX_ANSWER_BYTES:
                    raise ServerError(f"the answer of {host} exceeds {MAX_ANSWER_BYTES >> 20} MiB")
                if event.data.strip() == "[DONE]":
                    return
                document = _object(event.data)
                if document is None:
                    raise ServerError(f"{host} sent an event that is not a JSON object")
                if "error" in document and "choices" not in document:
                    raise ServerError(f"{host} failed: {self._client.clean(_message(event.data))}")
                num_events += 1
                yield document
        except library.TimeoutException as error:
            if num_events:
                raise ServerError(f"{host} sent nothing more in time", "raise --timeout") from None
            raise self._client.unreachable(error) from None
        except (library.HTTPError, OSError) as error:
            if not self.is_closed:
                raise ServerError(f"{host} broke off its answer: {self._client._safe(error)}") from None


def _object(text: str) -> Json | None:
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _message(text: str) -> str:
    """Returns the message of an error document; the text itself if it is not an error document."""
    document = _object(text)
    if document is None:
        return text[:2000]
    found = word(part(document, "error"), "message") or word(document, "message") or word(document, "error")
    return found or word(document, "detail")


def _wait_seconds(retry_after: str | None, default: float | None) -> float | None:
    """Returns how long to wait for a retry; None if the server wants more patience than we have."""
    try:
        wait = float(retry_after or "")
    except ValueError:  # missing, or a date
        return default
    return wait if 0 <= wait <= LONGEST_WAIT_SECONDS else None
