"""Generates text from Python: loads models once, then generates, streams and chats. `specgen.load` starts here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

from specgen.core.draft_name import DraftName
from specgen.core.events import TextEvent
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.results import ModelInfo, RunReport
from specgen.core.settings import (
    DEFAULT_MAX_NEW_TOKENS,
    DEFAULT_REPLY_TOKENS,
    LONGEST_AUTO_DRAFT,
    MAX_TREE_NODES,
    BaselineMethod,
    DecodeSettings,
    DraftSchedule,
    DtypeName,
    ModelSettings,
    PairSettings,
    Quantization,
    ReplySettings,
    SamplingSettings,
    TreeSchedule,
)
from specgen.loading.libraries import forbid_foreign_code
from specgen.runtime import learned_costs
from specgen.runtime.conversation import Conversation
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.storage.transcript import ChatMessage
from specgen.text.chat_template import ChatTemplate, Message, encode_text


class LoadKeywords(TypedDict, total=False):
    """How models are loaded; every key may be omitted."""

    quant: Quantization
    """Weight format of the target; `auto` chooses by device."""
    draft_quant: Quantization
    """Weight format of the draft."""
    dtype: DtypeName
    """Compute type of both; `auto` chooses by device."""
    device: str
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    offline: bool
    """Use only files on this machine."""
    lookup_texts: tuple[str, ...]
    """Texts that an answer may repeat; prompt lookup searches them, too."""


class AnswerKeywords(TypedDict, total=False):
    """How an answer is generated; every key may be omitted."""

    max_new_tokens: int
    """Longest answer; default 256, or what the model's window leaves."""
    num_draft_tokens: int | Literal["auto"]
    """Draft length; `auto`, the default, chooses it by measured cost."""
    num_tree_nodes: int | Literal["auto"]
    """Tokens of drafts that branch, whose paths have up to `num_draft_tokens`; 0: no branches. `auto` chooses their
    number by measured cost: the default of greedy text if that chooses the draft length, too, and all models are on
    CPUs; else 0."""
    sampling: SamplingSettings
    """How tokens are chosen; default: what the model's authors recommend, else greedy."""
    stops: Sequence[str]
    """Texts that end the answer; they are not part of it."""
    system: str
    """System message."""
    template_variables: Mapping[str, Any]
    """Variables for the chat template, as in `{"enable_thinking": False}`."""
    is_raw: bool
    """Continue the prompt as plain text, without a chat template."""


class Models:
    """A loaded target and its drafter.

    One answer at a time: the caches are shared. A prompt that begins like the text before it reuses them.
    """

    def __init__(self, loaded: LoadedModels) -> None:
        self._loaded = loaded

    @property
    def target(self) -> ModelInfo:
        """The target as it runs: weight format, compute type, device."""
        return self._loaded.target_info

    @property
    def draft(self) -> ModelInfo | None:
        """The draft model as it runs; None for lookup or without drafts."""
        return self._loaded.draft_info

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know about the loaded models, one line each."""
        return self._loaded.notices

    def stream(self, prompt: str, **options: Unpack[AnswerKeywords]) -> Iterator[TextEvent]:
        """Generates an answer and yields its events.

        Args:
            prompt: The user's message; with `is_raw`, the text to continue.
            options: See `AnswerKeywords`.

        Yields:
            A `Prefill`, then a `RoundText` for each round with accepted, rejected and corrected tokens, and a
            `FinalText`. The `kept` texts of all rounds and the final text, joined, are the answer.

        Raises:
            PromptError: The prompt is empty, or too long for the model's window.
            LoadError: The chat template refuses the prompt.
            NumericalError: The target's logits contain NaN or infinity.
        """
        yield from self._generation(prompt, options)

    def generate(
        self, prompt: str, *, baseline: BaselineMethod = "calibrate", **options: Unpack[AnswerKeywords]
    ) -> RunReport:
        """Generates an answer.

        Args:
            prompt: As in `stream`.
            baseline: How the target alone is timed for `speedup`: `calibrate` with a few steps, `full` with the whole
                answer, `off` not at all.
            options: See `AnswerKeywords`.

        Returns:
            The `text`, `counts` of drafted and accepted tokens, the `speedup` and more.

        Raises:
            SpecgenError: As in `stream`.
        """
        generation = self._generation(prompt, options)
        for _ in generation:
            pass
        generation.measure_baseline(baseline)
        generation.finish()
        return generation.report()

    def chat(self, **options: Unpack[AnswerKeywords]) -> Chat:
        """Starts a conversation. Its replies reuse the caches of earlier turns.

        Args:
            options: Of all replies; see `AnswerKeywords`.

        Raises:
            SettingsError: The model has no chat template.
        """
        pair = self._loaded.pair
        template = ChatTemplate(options=options.get("template_variables", {}))
        template.check(pair.tokenizer, pair.target.name)
        sampling, source = self._sampling(options)
        num_draft_tokens, schedule = _draft_length(options)
        num_tree_nodes, tree_schedule = _tree(options)
        settings = ReplySettings(
            sampling,
            source,
            max_new_tokens=options.get("max_new_tokens", DEFAULT_REPLY_TOKENS),
            num_draft_tokens=num_draft_tokens,
            schedule=schedule,
            num_tree_nodes=num_tree_nodes,
            tree_schedule=tree_schedule,
            stops=tuple(options.get("stops", ())),
        )
        return Chat(Conversation(self._loaded, settings, template, options.get("system")))

    def _generation(self, prompt: str, options: AnswerKeywords) -> Generation:
        pair = self._loaded.pair
        is_raw = options.get("is_raw", False)
        if is_raw:
            ids = encode_text(pair.tokenizer, prompt)
        else:
            system = options.get("system")
            messages = [Message("system", system)] if system else []
            template = ChatTemplate(options=options.get("template_variables", {}))
            ids = template.encode(pair.tokenizer, [*messages, Message("user", prompt)])
        limit = pair.resolve_max_new_tokens(len(ids), options.get("max_new_tokens"), DEFAULT_MAX_NEW_TOKENS)
        num_nodes, tree_schedule = _tree(options)
        length = _draft_length(options)
        decode = DecodeSettings(limit, *length, pair.end_ids, num_tree_nodes=num_nodes, tree_schedule=tree_schedule)
        sampling, source = self._sampling(options)
        return Generation(
            self._loaded, Request(ids, decode, sampling, source, tuple(options.get("stops", ())), is_raw=is_raw)
        )

    def _sampling(self, options: AnswerKeywords) -> tuple[SamplingSettings, str]:
        if "sampling" in options:
            return options["sampling"], "options"
        defaults = self._loaded.pair.defaults.sampling
        return (SamplingSettings(), "default") if defaults is None else (defaults, "model")


class Chat:
    """A conversation with the loaded models."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._last: Generation | None = None

    @property
    def messages(self) -> tuple[ChatMessage, ...]:
        """The messages so far: role, content, and the reasoning of replies that have one."""
        return self._conversation.messages

    def stream(self, text: str) -> Iterator[TextEvent]:
        """Sends a message and yields the events of the reply; see `Models.stream`."""
        self._conversation.say(text)
        self._last = generation = self._conversation.begin_reply()
        try:
            yield from self._conversation.stream(generation)
        finally:
            self._conversation.end_reply(generation)

    def send(self, text: str) -> RunReport:
        """Sends a message and returns the reply; its speedup is not measured.

        Raises:
            SpecgenError: As in `Models.stream`.
        """
        for _ in self.stream(text):
            pass
        assert self._last is not None, "stream sets it"
        return self._last.report()


def load(target: str, draft: str, options: LoadKeywords, progress: ProgressListener | None = None) -> Models:
    """Loads a target and its drafter; see `specgen.load`."""
    forbid_foreign_code()
    dtype, device, offline = options.get("dtype", "auto"), options.get("device", "auto"), options.get("offline", False)
    like = ModelSettings("", options.get("draft_quant", "auto"), dtype, device, offline=offline)
    pair = PairSettings(
        ModelSettings(target, options.get("quant", "auto"), dtype, device, offline=offline),
        lookup_texts=options.get("lookup_texts", ()),
    ).with_draft(DraftName(draft), like)
    loaded = load_models(resolve_pair(pair, progress or SILENT), progress or SILENT)
    learned_costs.load(loaded)
    return Models(loaded)


def _draft_length(options: AnswerKeywords) -> tuple[int, DraftSchedule]:
    requested = options.get("num_draft_tokens", "auto")
    return (LONGEST_AUTO_DRAFT, "auto") if requested == "auto" else (requested, "constant")


def _tree(options: AnswerKeywords) -> tuple[int, TreeSchedule]:
    if "num_tree_nodes" not in options:
        return MAX_TREE_NODES, "default"
    requested = options["num_tree_nodes"]
    return (MAX_TREE_NODES, "auto") if requested == "auto" else (requested, "constant")
