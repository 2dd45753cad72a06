"""Answers requests on a server, several at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from time import perf_counter, sleep
from typing import Any, TypeVar

from specgen.core.batch import BatchAnswer, BatchRequest, BatchResult, Json
from specgen.core.errors import (
    ServerBusyError,
    ServerDeniedError,
    ServerError,
    ServerUnreachableError,
    SpecgenError,
)
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import ChatRequest, EventFigures, part

T = TypeVar("T")
_OF_ALL_REQUESTS = (ServerDeniedError, ServerUnreachableError)
"""Errors that every further request would have, too."""
BUSY_SECONDS = (5.0, 10.0, 20.0, 40.0, 60.0)
"""Waits before a request is sent again that a busy server has refused, after the client's own retries."""


@dataclass(frozen=True, slots=True)
class ServedSettings:
    """How requests are asked that set nothing themselves.

    Args:
        max_tokens: Most tokens of an answer.
        sampling: By our names; empty: the server's own.
        stops: Texts that end an answer.
        template_variables: Variables for the chat template.
        concurrency: Requests at a time.
        busy_seconds: Waits after a busy server.
    """

    max_tokens: int
    sampling: Mapping[str, float] = field(default_factory=dict)
    stops: Sequence[str] = ()
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = 8
    busy_seconds: Sequence[float] = BUSY_SECONDS


class ServedBatch:
    """Answers requests on a server. Results come in the order in which they are ready."""

    def __init__(self, server: Server, settings: ServedSettings) -> None:
        self._server = server
        self._settings = settings
        self._waiting: SimpleQueue[BatchRequest] = SimpleQueue()
        # None: a worker found nothing left to do, or `interrupt`. SimpleQueue.put may be called in a signal handler.
        self._ready: SimpleQueue[BatchResult | BaseException | None] = SimpleQueue()
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Ends the iteration at once. Answers that are under way are dropped: the server sees closed connections."""
        self._is_interrupted = True
        self._ready.put(None)

    def results(self, requests: Sequence[BatchRequest]) -> Iterator[BatchResult]:
        """Yields results in the order in which they are ready; see `Answering`."""
        for request in requests:
            self._waiting.put(request)
        num_working = min(self._settings.concurrency, len(requests))
        for _ in range(num_working):
            # Daemons: an answer under way does not keep the program from ending.
            threading.Thread(target=self._work, daemon=True).start()
        failed: BaseException | None = None
        try:
            while num_working and not self._is_interrupted:
                result = self._ready.get()
                if isinstance(result, BatchResult):
                    yield result
                    continue
                num_working -= 1
                if isinstance(result, BaseException):
                    # The others finish what they have begun.
                    failed = failed or result
                    list(_items(self._waiting))
            # Results that were ready when a signal ended the iteration.
            yield from (result for result in _items(self._ready) if isinstance(result, BatchResult))
        finally:
            self._is_interrupted = True
        if failed is not None:
            raise failed

    def _work(self) -> None:
        """Answers requests until none is left; runs in a thread of its own."""
        try:
            while not self._is_interrupted:
                request = self._waiting.get_nowait()
                try:
                    self._ready.put(BatchResult(request, self._answer(request)))
                except _OF_ALL_REQUESTS:
                    raise
                except SpecgenError as error:
                    self._ready.put(BatchResult(request, error))
        except Empty:
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._ready.put(error)

    def _answer(self, request: BatchRequest) -> BatchAnswer:
        messages, replies = list(request.messages), []
        started = perf_counter()
        num_tokens = num_drafted = num_accepted = 0
        is_known, seconds = True, 0.0
        for number in range(len(request.later_turns) + 1):
            body, figures = self._ask(self._body(request, messages))
            text = self._text(body)
            seconds += figures.decode_seconds or 0.0
            num_tokens += figures.num_tokens or 0
            if figures.acceptance is None:
                is_known = False
            else:
                num_drafted += figures.acceptance.num_drafted
                num_accepted += figures.acceptance.num_accepted
            if number < len(request.later_turns):
                replies.append(text)
                messages += [
                    {"role": "assistant", "content": text},
                    {"role": "user", "content": request.later_turns[number]},
                ]
        return BatchAnswer(
            body,
            num_tokens or None,
            seconds or perf_counter() - started,
            num_drafted if is_known else None,
            num_accepted if is_known else None,
            earlier_replies=tuple(replies),
            problem=figures.problem,
        )

    def _ask(self, body: Json) -> tuple[Json, EventFigures]:
        """Sends one body; waits for a busy server, and sends it once more if a connection broke.

        Raises:
            ServerUnreachableError: The server does not answer other requests either.
            SpecgenError: This request can't be answered.
        """
        waits = iter(self._settings.busy_seconds)
        was_broken = False
        while True:
            try:
                return self._server.complete(body)
            except ServerBusyError:
                if (wait := next(waits, None)) is None:
                    raise
                sleep(wait)
            except ServerUnreachableError as error:
                self._server.client.get_text("/v1/models")  # raises if the server is gone
                if was_broken:
                    raise ServerError(error.message, error.hint) from error
                was_broken = True

    def _body(self, request: BatchRequest, messages: Sequence[Json]) -> Json:
        settings, fields = self._settings, {key: value for key, value in request.fields.items() if key != "stream"}
        if settings.template_variables:
            own = fields.get("chat_template_kwargs")
            fields["chat_template_kwargs"] = {**settings.template_variables, **(own if isinstance(own, dict) else {})}
        limit = fields.pop("max_tokens", None) or fields.get("max_completion_tokens") or settings.max_tokens
        # The name of OpenAI's model in the file is not one of this server's.
        fields["model"] = self._server.facts.model
        asked = ChatRequest(messages, limit, settings.sampling, settings.stops, fields=fields)
        return self._server.body(asked, stream=False)

    def _text(self, body: Json) -> str:
        """Returns the text of an answer; empty for one without, such as a call of a tool.

        Raises:
            ServerError: The body is not an answer.
        """
        choices = body.get("choices")
        if not isinstance(choices, list) or not choices:
            raise ServerError(f"{self._server.client.address.host} sent an answer without choices")
        content = part(choices[0], "message").get("content")
        return content if isinstance(content, str) else ""


def _items(queue: SimpleQueue[T]) -> Iterator[T]:
    """Removes and yields what is in a queue."""
    with suppress(Empty):
        while True:
            yield queue.get_nowait()
