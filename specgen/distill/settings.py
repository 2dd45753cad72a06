"""The words of distillation: what to train, frozen and checked once. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

from specgen.core.errors import SettingsError

Kind = Literal["features", "layers"]
MAX_LAYERS = 8
MAX_UNROLL = 4


@dataclass(frozen=True, slots=True)
class TextSettings:
    """The target's own texts that are trained on.

    Args:
        num_prompts: Prompts of the bundled set, or at most so many of a file.
        self_share: Share of the bundled prompts that the target makes up itself.
        max_prompt_tokens: Longer prompts are left out.
        max_new_tokens: Longest answer.
        greedy_share: Share of greedy answers; the others are drawn.
        temperature: Of the drawn ones.
        batch_size: Texts written at once.
    """

    num_prompts: int = 4000
    self_share: float = 0.15
    max_prompt_tokens: int = 320
    max_new_tokens: int = 160
    greedy_share: float = 0.7
    temperature: float = 0.7
    batch_size: int = 64

    def __post_init__(self) -> None:
        _check_positive(self, "num_prompts", "max_prompt_tokens", "max_new_tokens", "batch_size")
        _check_share(self, "self_share", "greedy_share")
        if self.temperature <= 0:
            raise SettingsError(f"temperature of the drawn answers is {self.temperature}: it must be above 0")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How a draft is trained.

    Args:
        epochs: Passes over the texts; may be a fraction.
        batch_tokens: Tokens of one step of the optimizer.
        learning_rate: At the peak of the cosine.
        warmup_share: Share of the steps in which the rate rises to it.
        weight_decay: Of matrices.
        unroll: Steps of drafting that are trained, each on the draft's own features but the first.
        feature_weight: Weight of the distance between the draft's output and the target's head input.
        hard_share: Share of the loss that knows only the target's best token, the rest its whole distribution.
    """

    epochs: float = 4.0
    batch_tokens: int = 4096
    learning_rate: float = 1e-3
    warmup_share: float = 0.05
    weight_decay: float = 0.01
    unroll: int = 2
    feature_weight: float = 1.0
    hard_share: float = 0.3

    def __post_init__(self) -> None:
        _check_positive(self, "epochs", "batch_tokens", "learning_rate", "unroll")
        _check_share(self, "warmup_share", "hard_share")
        if self.unroll > MAX_UNROLL:
            raise SettingsError(f"unroll is {self.unroll}: at most {MAX_UNROLL}")


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """One draft.

    Args:
        kind: `features` reads the target's last hidden states; `layers` only tokens.
        num_layers: Layers of the draft.
        layers: Which of the target's, ascending; empty is the last ones of a draft with features, else spread over all.
        num_draft_ids: Tokens the draft can propose, the target's most frequent ones; 0 is all.
        seed: Of prompts, drawn answers and the order of training.
        texts: What is trained on.
        train: How.
    """

    kind: Kind = "features"
    num_layers: int = 1
    num_draft_ids: int = 8192
    layers: tuple[int, ...] = ()
    seed: int = 0
    texts: TextSettings = field(default_factory=TextSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if self.kind not in ("features", "layers"):
            raise SettingsError(f"no draft of kind {self.kind!r}: features or layers")
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise SettingsError(f"a draft of {self.num_layers} layers: 1 to {MAX_LAYERS} are possible")
        if self.layers and (len(self.layers) != self.num_layers or not _is_ascending(self.layers)):
            raise SettingsError(
                f"layers {', '.join(map(str, self.layers))}: {self.num_layers} ascending numbers from 0 are wanted"
            )
        if self.num_draft_ids < 0:
            raise SettingsError(f"{self.num_draft_ids} draft tokens: 0 (all) or more")

    def as_document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class DistillProgress:
    """How far a distillation is.

    Args:
        stage: `writing`, `training`, `measuring` or `saving`.
        num_done: Steps of the stage that are done.
        num_steps: Steps of the stage.
        num_tokens: Tokens written so far; 0 in other stages.
        loss: Mean loss of the last steps; None outside of training.
        alpha: Acceptance last measured on held-out prompts; None before.
    """

    stage: Literal["writing", "training", "measuring", "saving"]
    num_done: int
    num_steps: int
    num_tokens: int = 0
    loss: float | None = None
    alpha: float | None = None


def _is_ascending(layers: tuple[int, ...]) -> bool:
    return layers[0] >= 0 and all(before < after for before, after in pairwise(layers))


def _check_positive(settings: Any, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) > 0:
            raise SettingsError(f"{name} is {getattr(settings, name)}: it must be above 0")


def _check_share(settings: Any, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) <= 1:
            raise SettingsError(f"{name} is {getattr(settings, name)}: a share lies between 0 and 1")
