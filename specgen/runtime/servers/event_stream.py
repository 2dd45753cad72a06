"""Reads the events of an answer while a server streams it (server-sent events)."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from specgen.core.errors import ServerError
from specgen.runtime.servers.values import Json, part, word

if TYPE_CHECKING:
    import httpx2

    from specgen.runtime.servers.http import ServerClient

MAX_EVENT_BYTES = 2**20
MAX_ANSWER_BYTES = 64 * 2**20


class EventStream:
    """The events of one answer, as JSON objects. `close` from a signal handler ends the iteration."""

    def __init__(self, client: ServerClient, response: httpx2.Response) -> None:
        self._client, self._response = client, response
        self._library = client.library
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
                document = json_object(event.data)
                if document is None:
                    raise ServerError(f"{host} sent an event that is not a JSON object")
                if "error" in document and "choices" not in document:
                    raise ServerError(f"{host} failed: {self._client.clean(error_message(event.data))}")
                num_events += 1
                yield document
        except library.TimeoutException as error:
            if num_events:
                raise ServerError(f"{host} sent nothing more in time", "raise --timeout") from None
            raise self._client.unreachable(error) from None
        except (library.HTTPError, OSError) as error:
            if not self.is_closed:
                raise ServerError(f"{host} broke off its answer: {self._client.describe(error)}") from None


def json_object(text: str) -> Json | None:
    """Returns the JSON object of a text; None if it is not one."""
    try:
        document: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def error_message(text: str) -> str:
    """Returns the message of an error document; the text itself if it is not an error document."""
    document = json_object(text)
    if document is None:
        return text[:2000]
    found = word(part(document, "error"), "message") or word(document, "message") or word(document, "error")
    return found or word(document, "detail")
