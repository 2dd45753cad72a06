"""Answers requests on this machine, one after the other over the same caches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import time
from typing import Any

from specgen.core.batch import BatchAnswer, BatchRequest, BatchResult
from specgen.core.errors import LoadError, MemoryShortageError, NumericalError, SettingsError
from specgen.core.metrics import Counts
from specgen.core.progress import ProgressListener
from specgen.runtime import learned_costs
from specgen.runtime.batch.local_fields import LocalSettings, RequestSettings, read_settings
from specgen.runtime.batch.requests import text_messages
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair
from specgen.text.chat_template import Message, encode_messages

_OF_ONE_REQUEST = (SettingsError, LoadError, NumericalError, MemoryShortageError)
"""Errors that the next request need not have: a prompt that is too long, a conversation that the template refuses."""


def open_batch(pair: Pair, settings: LocalSettings, progress: ProgressListener) -> LocalBatch:
    """Loads the models of a batch; raises like `load_models`."""
    models = load_models(pair, progress)
    learned_costs.load(models)
    return LocalBatch(models, settings)


class LocalBatch:
    """Answers requests with loaded models. A prompt that begins like the one before it reuses the caches."""

    def __init__(self, models: LoadedModels, settings: LocalSettings) -> None:
        self._models = models
        self._settings = settings
        self._generation: Generation | None = None
        self._is_interrupted = False

    def interrupt(self) -> None:
        """Ends the iteration after the round in progress; the answer it belongs to is dropped."""
        self._is_interrupted = True
        if self._generation is not None:
            self._generation.interrupt()

    def results(self, requests: Sequence[BatchRequest]) -> Iterator[BatchResult]:
        """Yields results in the order of the requests; see `Answering`."""
        for request in requests:
            try:
                answer = self._answer(request, read_settings(request))
            except _OF_ONE_REQUEST as error:
                self._models.reset_caches()
                yield BatchResult(request, error)
            else:
                if answer is None:
                    break
                yield BatchResult(request, answer)
        # The target alone is not timed, so nothing shows whether other programs disturbed the answers.
        learned_costs.save(self._models)

    def _answer(self, request: BatchRequest, own: RequestSettings) -> BatchAnswer | None:
        """Answers all turns of a request; None if it was interrupted."""
        messages = list(text_messages(request))
        counts, replies = Counts(), []
        generation = self._generate(messages, own)
        for turn in request.later_turns:
            if generation is None:
                return None
            counts.include(generation.counts)
            replies.append(generation.text)
            messages += [Message("assistant", generation.text), Message("user", turn)]
            generation = self._generate(messages, own)
        if generation is None:
            return None
        counts.include(generation.counts)
        return BatchAnswer(
            _body(generation),
            counts.num_emitted,
            counts.decode_seconds,
            counts.num_drafted,
            counts.num_accepted,
            counts,
            tuple(replies),
        )

    def _generate(self, messages: Sequence[Message], own: RequestSettings) -> Generation | None:
        settings, models = self._settings, self._models
        tokenizer, template = models.pair.tokenizer, settings.template
        if template is None:
            ids = encode_messages(tokenizer, messages)
        else:
            template = replace(template, options={**template.options, **own.template_variables})
            ids = template.encode(tokenizer, messages)
        requested = own.max_new_tokens or settings.max_new_tokens
        limit = models.pair.resolve_max_new_tokens(len(ids), requested, settings.decode.max_new_tokens)
        self._generation = generation = Generation(
            models,
            Request(
                ids,
                replace(settings.decode, max_new_tokens=limit),
                own.apply(settings.sampling),
                settings.sampling_source,
                (*settings.stops, *own.stops),
                is_raw=template is None,
            ),
        )
        if self._should_end():  # since the generation before
            return None
        for _ in generation:
            pass
        return None if generation.is_interrupted else generation

    def _should_end(self) -> bool:
        """Returns whether `interrupt` was called; a method, because a signal handler may change it at any time."""
        return self._is_interrupted


def _body(generation: Generation) -> dict[str, Any]:
    counts = generation.counts
    return {
        "object": "chat.completion",
        "created": int(time()),
        "model": generation.info.target.name,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": generation.text},
                "finish_reason": generation.finish_reason,
                "token_ids": list(generation.token_ids),
            }
        ],
        "usage": {
            "prompt_tokens": counts.num_prompt_tokens,
            "completion_tokens": counts.num_emitted,
            "total_tokens": counts.num_prompt_tokens + counts.num_emitted,
            "prompt_tokens_details": {"cached_tokens": counts.num_reused_tokens},
        },
    }
