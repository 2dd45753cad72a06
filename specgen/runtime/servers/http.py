"""Talks to one server over HTTP: time limits, retries before the first byte, and errors with stable codes."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

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
from specgen.runtime.servers.event_stream import EventStream, error_message, json_object
from specgen.runtime.servers.values import Address, Json

if TYPE_CHECKING:
    import httpx2

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
        self.library = httpx2
        """Imported already; an `EventStream` uses it, too."""
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
        return None if text is None else json_object(text)

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
        if (document := json_object(text)) is None:
            raise ServerError(f"{self.address.host} did not answer {path} with a JSON object")
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
            with suppress(self.library.HTTPError):
                response.close()

    def _send(self, method: str, path: str, body: Json | None, timeout: float | None) -> httpx2.Response:
        """Sends a request, again if it could not connect or the server was busy; the body of the answer is unread."""
        times = self.library.Timeout(timeout or self.options.timeout_seconds, connect=5.0, write=30.0)
        for attempt in range(self.options.num_retries + 1):
            is_last = attempt == self.options.num_retries
            wait: float | None = 0.5 * 2**attempt
            try:
                request = self._client.build_request(method, self.address.url + path, json=body, timeout=times)
                response = self._client.send(request, stream=True)
            except (self.library.ConnectError, self.library.ConnectTimeout) as error:
                if is_last:
                    raise self.unreachable(error) from None
            except (self.library.HTTPError, self.library.InvalidURL, OSError) as error:
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
        except (self.library.HTTPError, OSError) as error:
            raise ServerError(f"{self.address.host} broke off its answer: {self.describe(error)}") from None
        return data.decode("utf-8", "replace")

    def _failure(self, response: httpx2.Response) -> Exception:
        """Returns the error for an answer that is not 200."""
        status, host = response.status_code, self.address.host
        try:
            said = self.clean(error_message(self._body(response)))
        except ServerError:
            said = ""
        text = f": {said}" if said else ""
        if status in (401, 403):
            return ServerDeniedError(f"{host} refused the key (HTTP {status}){text}", f"set {KEY_VARIABLE}")
        if status in _BUSY:
            return ServerBusyError(f"{host} is busy (HTTP {status}){text}", "try again later")
        if status == 404:
            return SettingsError(f"{host} did not find what was requested (HTTP 404){text}", "check --server and -t")
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
        is_slow = isinstance(error, self.library.TimeoutException)
        why = "no answer in time" if is_slow else self.describe(error)
        hint = "raise --timeout, or check the server" if is_slow else "check the address, and that the server runs"
        return ServerUnreachableError(f"can't reach {self.address.host}: {why}", hint)

    def clean(self, text: str) -> str:
        """Returns a server's message on one line, at most 200 characters, without the key if it repeats it."""
        text = " ".join(text.replace(self.address.key, "***").split() if self.address.key else text.split())
        return text if len(text) <= 200 else text[:197] + "..."

    def describe(self, error: Exception) -> str:
        """Returns the first line of an error, cleaned."""
        return self.clean(first_line(error))


def _wait_seconds(retry_after: str | None, default: float | None) -> float | None:
    """Returns how long to wait for a retry; None if the server wants more patience than we have."""
    try:
        wait = float(retry_after or "")
    except ValueError:  # missing, or a date
        return default
    return wait if 0 <= wait <= LONGEST_WAIT_SECONDS else None
