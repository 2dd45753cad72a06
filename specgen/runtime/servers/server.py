"""Opens a server: recognises its engine, asks it, and reads what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from specgen.core.errors import ModelNotFoundError, ServerError, SettingsError
from specgen.runtime.servers.engine import Engine
from specgen.runtime.servers.event_stream import EventStream
from specgen.runtime.servers.http import HttpOptions, ServerClient
from specgen.runtime.servers.llama_server import LlamaServer
from specgen.runtime.servers.lm_studio import LmStudio
from specgen.runtime.servers.plain import PlainServer
from specgen.runtime.servers.prometheus import Counters, num_running, read_counters
from specgen.runtime.servers.sglang import Sglang
from specgen.runtime.servers.values import (
    Address,
    ChatRequest,
    Delta,
    EventFigures,
    Json,
    ServerFacts,
    counts,
    part,
    word,
)
from specgen.runtime.servers.vllm import Vllm

ENGINES: tuple[Engine, ...] = (Vllm(), LlamaServer(), Sglang(), LmStudio(), PlainServer())
"""Asked in this order whether a server is theirs; the last one takes any."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server whose engine is known."""

    client: ServerClient
    engine: Engine
    facts: ServerFacts

    def body(self, request: ChatRequest, *, stream: bool) -> Json:
        """Returns the body of a request.

        Raises:
            SettingsError: The engine has no such sampling setting.
        """
        engine = self.engine
        if missing := [name for name in request.sampling if name not in engine.sampling_fields]:
            option = "--" + missing[0].replace("_", "-")
            raise SettingsError(f"{option} is not known to the server ({self.facts.name})", f"omit {option}")
        if request.ignore_eos and not engine.has_ignore_eos:
            raise SettingsError(f"--ignore-eos is not known to the server ({self.facts.name})", "omit --ignore-eos")
        extra = engine.request_fields()
        if not stream:
            extra = {
                name: value for name, value in extra.items() if name not in ("stream_options", "timings_per_token")
            }
        return {
            "model": self.facts.model,
            "messages": [dict(message) for message in request.messages],
            "max_tokens": request.max_tokens,
            "stream": stream,
            **({"stop": list(request.stops)} if request.stops else {}),
            **({"ignore_eos": True} if request.ignore_eos else {}),
            **{engine.sampling_fields[name]: value for name, value in request.sampling.items()},
            **extra,
            **request.fields,
        }

    def complete(self, body: Json) -> tuple[Json, EventFigures]:
        """Sends a body that is complete, not streamed; returns the answer and its figures; raises like `post`."""
        document = self.client.post(self.engine.chat_path, {**body, "stream": False})
        return document, self.engine.read(document)

    @contextmanager
    def stream(self, request: ChatRequest) -> Iterator[tuple[EventStream, Iterator[Delta]]]:
        """Asks, and gives the open stream, to be closed early if necessary, and the events of the answer.

        Raises:
            SettingsError: The engine, or the server, refuses a setting.
            PromptError: The prompt is too long.
            ServerError: The server can't be reached, or fails; also during the iteration.
        """
        with self.client.events(self.engine.chat_path, self.body(request, stream=True)) as events:
            yield events, self._deltas(events)

    def _deltas(self, events: EventStream) -> Iterator[Delta]:
        is_finished = False
        for event in events:
            delta = self._delta(event)
            is_finished = is_finished or delta.finish_reason is not None
            yield delta
        if not is_finished and not events.is_closed:
            raise ServerError(f"{self.client.address.host} ended its answer without saying why", "see the server's log")

    def _delta(self, event: Json) -> Delta:
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = part(choice, "delta")
        ids = counts(choice, "token_ids")
        return Delta(
            _text(message, "content"),
            _text(message, "reasoning_content") or _text(message, "reasoning"),
            word(choice, "finish_reason") or None,
            len(ids) if ids else None,
            self.engine.read(event),
        )

    def counters(self) -> Counters | None:
        """Returns the server's counters of drafts; None if it has none or does not show them."""
        page = self._metrics()
        return None if page is None else read_counters(page, self.engine.metrics_prefix)

    def num_running(self) -> int | None:
        """Returns how many requests the server works on; None if it does not say."""
        page = self._metrics()
        return None if page is None else num_running(page, self.engine.metrics_prefix)

    def _metrics(self) -> str | None:
        if not self.engine.metrics_prefix:
            return None
        try:
            return self.client.get_text("/metrics")
        except ServerError:
            return None


def _text(message: Json, name: str) -> str:
    value = message.get(name)
    return value if isinstance(value, str) else ""


def open_server(address: Address, model: str = "", options: HttpOptions | None = None) -> Server:
    """Connects to a server and recognises its engine.

    Args:
        address: Where it is.
        model: Which of its models answers; empty: the only one.

    Raises:
        ServerError: It can't be reached, refuses the key, or speaks another protocol.
        ModelNotFoundError: It does not have the model.
        SettingsError: It has several models, and none is named.
    """
    client = ServerClient(address, options)
    try:
        entry = _model_entry(client, model)

        def get(path: str) -> Json | None:
            try:
                return client.get(path)
            except ServerError:
                return None

        for engine in ENGINES:
            if (facts := engine.facts(entry, get)) is not None:
                return Server(client, engine, facts)
    except BaseException:
        client.close()
        raise
    raise AssertionError  # the last engine takes any server


def _model_entry(client: ServerClient, model: str) -> Json:
    host = client.address.host
    listed = client.get("/v1/models")
    data = None if listed is None else listed.get("data")
    entries = (
        [entry for entry in data if isinstance(entry, dict) and word(entry, "id")] if isinstance(data, list) else []
    )
    if listed is None or not isinstance(data, list):
        raise ServerError(
            f"{host} has no list of models at /v1/models", "give the address of an OpenAI-compatible server"
        )
    names = [client.clean(word(entry, "id")) for entry in entries]
    shown = ", ".join(names[:10]) or "none"
    if model:
        found = next((entry for entry in entries if model in (word(entry, "id"), *_aliases(entry))), None)
        if found is None:
            raise ModelNotFoundError(f"{host} has no model {model!r}", f"it has: {shown}")
        return found
    if len(entries) != 1:
        if not entries:
            raise ModelNotFoundError(f"{host} has no model loaded", "load one there")
        raise SettingsError(f"{host} has {len(entries)} models", f"choose one with -t: {shown}")
    return entries[0]


def _aliases(entry: Json) -> tuple[str, ...]:
    aliases = entry.get("aliases")
    return tuple(name for name in aliases if isinstance(name, str)) if isinstance(aliases, list) else ()
