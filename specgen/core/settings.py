"""Defines the settings of a run: frozen values, checked once when they are made. Standard library only."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from specgen.core.draft_name import DrafterKind, DraftName
from specgen.core.errors import SettingsError

Quantization = Literal["auto", "none", "int8", "nf4", "fp4"]
DtypeName = Literal["auto", "bfloat16", "float16", "float32"]
Verification = Literal["block", "token"]
DraftSchedule = Literal["auto", "constant"]
TreeSchedule = Literal["auto", "constant", "default"]
"""`default`: `auto` where costs decide draft lengths, the text is greedy and all models are on CPUs, else no trees.
There, trees were measured to be as fast as chains or faster. Where tokens are drawn, chains were faster for some pairs.
On CUDA trees were not measured, and their text is only near-tie."""
BaselineMethod = Literal["calibrate", "full", "off"]
DraftVocab = Literal["auto", "same", "shared", "text"]
"""How a draft's vocabulary is used: as the target's own, by the tokens that both have, or by way of text."""
BackendName = Literal["auto", "torch", "transformers", "llama.cpp"]

DEFAULT_MAX_NEW_TOKENS, DEFAULT_REPLY_TOKENS = 256, 1024
"""Limits of an answer and of a chat's reply if the user gives none; both are cut to the context window."""
MAX_DRAFT_TOKENS = 64
"""Longest draft that can be requested; beyond it no measured pair gains anything."""
MAX_CHECKED_TOKENS = MAX_DRAFT_TOKENS + 1
"""Tokens of the longest pass that checks a draft: the draft and the token before it. Longer passes read prompts."""
LONGEST_AUTO_DRAFT = 16
"""Longest draft of `-k auto`: at the best acceptance measured, a longer one gains under 2 %."""
RESERVED_VARIABLES = frozenset(
    {
        *("messages", "conversation", "chat_template", "add_generation_prompt", "continue_final_message"),
        *("tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
        *("return_assistant_tokens_mask", "sanitize_control_tokens"),
    }
)
"""Names that can't be variables of a chat template: specgen sets them, or arguments of the method that renders."""
MAX_TREE_NODES = 16
"""Largest draft that branches: with it, passes took 1.4 to 2 times those over one token on the CPUs measured."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """Controls how the next token is chosen from the logits, in the same way for target and draft.

    Args:
        temperature: Divides the logits; 0 is greedy.
        top_k: Keeps the k likeliest tokens; 0 keeps all.
        top_p: Keeps the smallest set of tokens whose probabilities sum to at least this; 1 keeps all.
        min_p: Keeps tokens at least this fraction as likely as the likeliest; 0 keeps all.
        repetition_penalty: Divides positive and multiplies negative logits of tokens already in the text; 1 is off.
        seed: Seed of the run's randomness.
        same_text: Ties random choices to the position in the text instead of to the order of events: one seed then
            gives the same text with any draft and any draft length, at the price of some acceptance.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    same_text: bool = False

    def __post_init__(self) -> None:
        penalty, temperature = self.repetition_penalty, self.temperature
        _check(0 <= temperature < math.inf, "temperature", temperature, "of at least 0 (0 is greedy)")
        _check(self.top_k >= 0, "top-k", self.top_k, "of at least 0 (0 is off)")
        _check(0 < self.top_p <= 1, "top-p", self.top_p, "above 0 and at most 1 (1 is off)")
        _check(0 <= self.min_p < 1, "min-p", self.min_p, "of at least 0 and below 1 (0 is off)")
        _check(0 < penalty < math.inf, "repetition-penalty", penalty, "above 0 (1 is off)")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "from 0 to 2^63 - 1")

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest token is taken instead of drawing one."""
        return self.temperature == 0.0


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Tokens that a checkpoint's authors forbid or favour, with the names and meanings of transformers' `generate`.

    Args:
        suppress_tokens: Never chosen.
        begin_suppress_tokens: Not chosen as the first new token.
        bad_words_ids: Sequences that are never completed.
        no_repeat_ngram_size: Length of the sequences that occur at most once in prompt and answer; 0 is off.
        min_new_tokens: New tokens before the text may end.
        min_length: Tokens of prompt and answer before the text may end.
        end_ids: The tokens that end it.
        sequence_bias: Sequences, and what is added to the logit of the token that completes one.
        forced_bos_token_id: The only token that may follow a text of one token.
    """

    suppress_tokens: frozenset[int] = frozenset()
    begin_suppress_tokens: frozenset[int] = frozenset()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    no_repeat_ngram_size: int = 0
    min_new_tokens: int = 0
    min_length: int = 0
    end_ids: frozenset[int] = frozenset()
    sequence_bias: tuple[tuple[tuple[int, ...], float], ...] = ()
    forced_bos_token_id: int | None = None

    @property
    def has_effect(self) -> bool:
        """Whether a token is forbidden or favoured anywhere."""
        lengths = self.no_repeat_ngram_size, self.min_new_tokens, self.min_length
        tokens = self.suppress_tokens, self.begin_suppress_tokens, self.bad_words_ids, self.sequence_bias
        return any(map(bool, (*tokens, *lengths))) or self.forced_bos_token_id is not None


NO_RULES = TokenRules()


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """Limits one generation and chooses its accept rule.

    Args:
        num_draft_tokens: Draft at most this many tokens per round; 0 is plain decoding.
        schedule: `constant` drafts that many; `auto` up to that many, as long as a further one is worth its cost.
        end_ids: Token ids that end the text. Empty: only `max_new_tokens` ends it.
        strict: Makes a failing drafter an error instead of a notice.
        verification: Verifies a sampled draft as a `block` or `token` by token. Both are exact.
        num_tree_nodes: Tokens of a draft that branches, whose paths have up to `num_draft_tokens`; 0: no branches.
        tree_schedule: `constant` drafts that many; `auto` up to that many, as long as a further one is worth its cost;
            `default`: see `TreeSchedule`.
    """

    max_new_tokens: int
    num_draft_tokens: int = 5
    schedule: DraftSchedule = "constant"
    end_ids: frozenset[int] = frozenset()
    strict: bool = False
    verification: Verification = "block"
    num_tree_nodes: int = 0
    tree_schedule: TreeSchedule = "constant"

    def __post_init__(self) -> None:
        _check(self.max_new_tokens >= 1, "max-new-tokens", self.max_new_tokens, "of at least 1")
        _check(0 <= self.num_tree_nodes <= MAX_TREE_NODES, "tree", self.num_tree_nodes, f"from 1 to {MAX_TREE_NODES}")
        is_length = 0 <= self.num_draft_tokens <= MAX_DRAFT_TOKENS
        _check(is_length, "draft-tokens", self.num_draft_tokens, f"from 0 to {MAX_DRAFT_TOKENS}")


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """Chooses what runs a model. All options except the name apply to llama.cpp only.

    Args:
        name: `auto` runs GGUF files with llama.cpp if that is installed, everything else with transformers.
        gpu_layers: Layers on a GPU; -1 means all, None depends on the device.
        context_size: Positions of the cache; None means the model's window, but at most 8192.
        threads: None means one per physical core.
    """

    name: BackendName = "auto"
    gpu_layers: int | None = None
    context_size: int | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        _check(self.gpu_layers is None or self.gpu_layers >= -1, "gpu-layers", self.gpu_layers, "of at least -1 (all)")
        _check(self.context_size is None or self.context_size >= 2, "context-size", self.context_size, "of at least 2")
        _check(self.threads is None or 1 <= self.threads <= 1024, "threads", self.threads, "from 1 to 1024")


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Names a model and how to load it.

    Args:
        name: Hub id, local folder, `.gguf` file, or `""` for the built-in target.
        quant: Weight format; `auto` chooses by device.
        dtype: Compute type; `auto` chooses by device.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
        revision: Branch, tag or commit of a hub model.
        offline: Use only files already on this machine.
        draft_vocab: For a draft: how its vocabulary is used.
    """

    name: str
    quant: Quantization = "auto"
    dtype: DtypeName = "auto"
    device: str = "auto"
    revision: str | None = None
    offline: bool = False
    backend: BackendSettings = field(default_factory=BackendSettings)
    draft_vocab: DraftVocab = "auto"


@dataclass(frozen=True, slots=True)
class PairSettings:
    """Which models work together.

    Args:
        draft: The draft model, for `drafter="model"` and `"model+lookup"`; for `auto`, how to load a shipped one (its
            name is ignored).
        lookup_texts: Texts the answer may repeat; prompt lookup searches them, too.
    """

    target: ModelSettings
    drafter: DrafterKind = "lookup"
    draft: ModelSettings | None = None
    lookup_texts: tuple[str, ...] = ()

    def with_draft(self, name: DraftName, like: ModelSettings) -> PairSettings:
        """Returns the same with another drafter; if it is a model, it is loaded `like` that, apart from the name."""
        draft = None if name.kind in ("lookup", "none") else replace(like, name=name.model or "")
        return replace(self, drafter=name.kind, draft=draft)


def _check(is_valid: bool, name: str, value: object, valid: str) -> None:
    if not is_valid:
        raise SettingsError(f"invalid --{name} {value}", f"use a value {valid}")


@dataclass(frozen=True, slots=True)
class ReplySettings:
    """How the replies of a chat are generated.

    Args:
        sampling: The seed of each reply is this seed plus the number of replies before it, so a retry differs.
        sampling_source: Where they come from, for the report.
        max_new_tokens: Longest reply; the window may end it earlier.
        num_draft_tokens: Longest draft.
        schedule: `constant`, or `auto`: lengths chosen by measured cost.
        num_tree_nodes: As in `DecodeSettings`.
        tree_schedule: As in `DecodeSettings`.
        stops: Stop strings.
        strict: A failing drafter is an error, not a warning.
        show_special_tokens: Replies are shown with special tokens; messages are stored without.
    """

    sampling: SamplingSettings
    sampling_source: str = "default"
    max_new_tokens: int = 1024
    num_draft_tokens: int = 5
    schedule: DraftSchedule = "constant"
    num_tree_nodes: int = 0
    tree_schedule: TreeSchedule = "constant"
    stops: tuple[str, ...] = ()
    strict: bool = False
    show_special_tokens: bool = False
