"""Runs other programs on the prompts of a benchmark: llama-cpp-python's own generation, and that of transformers.

A peer computes greedy text. Its first token ends its TTFT, so the other tokens are what its decoding speed counts.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from specgen.bench.results import Setting
from specgen.core.errors import DeviceError, SpecgenError, first_line
from specgen.core.events import Prefill
from specgen.core.metrics import Counts, Detail
from specgen.engine.clock import Clock
from specgen.loading.llama_cpp import default_num_threads, llama_library
from specgen.models.transformers_model import TransformersModel

if TYPE_CHECKING:
    from specgen.runtime.pair import Pair


@dataclass(frozen=True, slots=True)
class PeerRequest:
    """What a peer is to write.

    Args:
        prompt_ids: The prompt.
        num_tokens: Longest answer.
        end_ids: Tokens that end it.
        clock: Seconds.
        should_stop: Whether the user ended the benchmark; the answer then does not count.
    """

    prompt_ids: Sequence[int]
    num_tokens: int
    end_ids: frozenset[int]
    clock: Clock
    should_stop: Callable[[], bool]


class PeerAnswer:
    """Records the tokens of an answer, and when they came."""

    def __init__(self, request: PeerRequest) -> None:
        self.request = request
        self.token_ids: list[int] = []
        self._started = request.clock()
        self._marks: list[float] = []

    def add(self, token: int) -> bool:
        """Adds a token; returns whether the answer ends with it."""
        request = self.request
        self._marks.append(request.clock())
        self.token_ids.append(token)
        is_whole = len(self.token_ids) >= request.num_tokens or token in request.end_ids
        return is_whole or request.should_stop()

    @property
    def counts(self) -> Counts:
        """Its figures: the first token came with the prompt's pass, and nothing is known of drafts."""
        counts = Counts(is_served=True, detail=Detail.NOTHING)
        counts.observe_prefill(Prefill(len(self.request.prompt_ids), 0, self._marks[0] - self._started, 0.0))
        counts.num_emitted, counts.num_untimed = len(self.token_ids), 1
        counts.other_seconds = self._marks[-1] - self._marks[0]
        return counts


class Peer(Protocol):
    """Another program that writes greedy text.

    `has_target_weights` says whether it computes with the target's weights, in the target's format: then its text is
    compared with that of the target.
    """

    setting: Setting
    has_target_weights: bool

    def generate(self, answer: PeerAnswer) -> None:
        """Writes an answer."""


class LlamaCppPeer:
    """Generates with `llama_cpp.Llama`, as its documentation shows.

    Args:
        pair: A GGUF file.
        has_target_weights: See `Peer`.

    Raises:
        DeviceError: llama-cpp-python can't be used, or can't load the file.
    """

    def __init__(self, pair: Pair, has_target_weights: bool) -> None:
        gguf, settings = pair.target.gguf, pair.settings.target.backend
        assert gguf is not None, "its files were resolved for llama.cpp"
        self.setting = Setting("peer", "llama-cpp", f"llama-cpp {gguf.header.quantization}")
        self.has_target_weights = has_target_weights
        llama_library()
        library: Any = importlib.import_module("llama_cpp")
        num_threads = settings.threads or default_num_threads()
        options: dict[str, Any] = {"n_threads": num_threads, "n_threads_batch": num_threads, "verbose": False}
        try:
            self._llama: Any = library.Llama(str(gguf.path), n_ctx=pair.target.config.max_positions or 0, **options)
        except (RuntimeError, ValueError) as error:
            raise DeviceError(f"llama-cpp-python can't load {gguf.path}: {first_line(error)}") from error

    def generate(self, answer: PeerAnswer) -> None:
        """Writes an answer."""
        # It would keep the part of the cache that the last prompt shares with this one.
        self._llama.reset()
        for token in self._llama.generate(list(answer.request.prompt_ids), top_k=1, temp=0.0, repeat_penalty=1.0):
            if answer.add(int(token)):
                return


class TransformersPeer:
    """Generates with transformers' `generate`, on the target's weights in the target's format.

    Args:
        model: The loaded model.
    """

    def __init__(self, model: TransformersModel) -> None:
        self.setting = Setting("peer", "transformers", "transformers")
        self.has_target_weights = True
        module: Any = model.module
        # Not the defaults of the checkpoint's authors: no other row has their penalties.
        module.generation_config = _greedy()
        self._module = module

    def generate(self, answer: PeerAnswer) -> None:
        """Writes an answer."""
        from transformers import StoppingCriteriaList

        def record(ids: torch.Tensor, _scores: torch.Tensor, **_: Any) -> torch.Tensor:
            return torch.full((1,), answer.add(int(ids[0, -1])), dtype=torch.bool, device=ids.device)

        criteria: Any = StoppingCriteriaList
        ids = torch.tensor([list(answer.request.prompt_ids)], device=self._module.device)
        self._module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=_greedy(max_new_tokens=answer.request.num_tokens),
            stopping_criteria=criteria([record]),
        )


def _greedy(**values: Any) -> Any:
    from transformers import GenerationConfig

    config: Any = GenerationConfig
    return config(do_sample=False, pad_token_id=0, **values)


def answered(peer: Peer, request: PeerRequest) -> PeerAnswer:
    """Returns the answer of a peer.

    Raises:
        DeviceError: The peer failed.
    """
    answer = PeerAnswer(request)
    try:
        peer.generate(answer)
    except SpecgenError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise DeviceError(f"{peer.setting.draft} failed: {first_line(error)}") from error
    if not answer.token_ids:
        raise DeviceError(f"{peer.setting.draft} wrote nothing")
    return answer
