"""Defines the settings and the progress of a distillation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from specgen.core.errors import SettingsError
from specgen.core.settings import ModelSettings
from specgen.text.chat_template import Message

Conversation = Sequence[Message]
"""A prompt: messages up to the reply that the target writes."""

Kind = Literal["features", "layers"]
MAX_LAYERS = 8
MAX_UNROLL = 4


@dataclass(frozen=True, slots=True)
class TextSettings:
    """Which texts of the target to train on.

    Args:
        num_prompts: Prompts of the bundled set, or the most to use from a file.
        self_share: Share of the bundled prompts that the target writes itself.
        max_prompt_tokens: Longer prompts are left out.
        max_new_tokens: Longest answer.
        greedy_share: Share of greedy answers; the others are sampled.
        temperature: Of the sampled answers.
        batch_size: Texts generated at once.
        template_variables: Variables for the chat template.
    """

    num_prompts: int = 4000
    self_share: float = 0.15
    max_prompt_tokens: int = 320
    max_new_tokens: int = 160
    greedy_share: float = 0.7
    temperature: float = 0.7
    batch_size: int = 64
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_positive(self, "num_prompts", "max_new_tokens", "batch_size")
        _check(self, "greedy_share", 0 <= self.greedy_share <= 1, "between 0 and 1")


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How to train a draft.

    Args:
        epochs: Passes over the texts; may be a fraction.
        batch_tokens: Tokens per optimizer step.
        learning_rate: At the peak of the cosine schedule.
        warmup_share: Share of the steps in which the rate rises to the peak.
        weight_decay: Of matrices.
        unroll: Draft steps that are trained. All but the first use the draft's own features.
        feature_weight: Weight of the distance between the draft's output and the target's feature.
        hard_share: Share of the loss that uses only the target's best token; the rest uses its distribution.
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
        if self.unroll > MAX_UNROLL:
            raise SettingsError(f"invalid --unroll {self.unroll}: it must be at most {MAX_UNROLL}")


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Which draft to make, and how.

    Args:
        kind: `features` reads the target's last hidden states; `layers` only tokens.
        num_layers: Layers of the draft.
        num_draft_ids: Tokens that the draft can propose, the target's most frequent ones; 0 is all.
        layers: Layers of the target to copy, ascending. Empty: the last ones, or, without features, spread over all.
        seed: Of prompts, sampled answers and the order of training.
        texts: Training data.
        train: Training.
    """

    kind: Kind = "features"
    num_layers: int = 1
    num_draft_ids: int = 8192
    layers: tuple[int, ...] = ()
    seed: int = 0
    texts: TextSettings = field(default_factory=TextSettings)
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.num_layers <= MAX_LAYERS:
            raise SettingsError(f"invalid --num-layers {self.num_layers}: it must be 1 to {MAX_LAYERS}")
        is_ascending = self.layers == tuple(sorted(set(self.layers))) and min(self.layers, default=0) >= 0
        if self.layers and (len(self.layers) != self.num_layers or not is_ascending):
            layers = ",".join(map(str, self.layers))
            raise SettingsError(f"invalid --layers {layers}: expected {self.num_layers} ascending numbers from 0")
        if self.num_draft_ids < 0:
            raise SettingsError(f"invalid --vocab {self.num_draft_ids}: it must be 0 (all) or more")


@dataclass(frozen=True, slots=True)
class DistillRequest:
    """A draft to make.

    Args:
        target: The model to make it for. It is loaded in bfloat16 where that is fast, else in float32.
        settings: Which draft to make, and how.
        folder: The folder of the draft.
        held_out: Prompts for measurements, never trained on.
        own_prompts: Prompts to train on instead of the bundled set.
        texts_folder: Where to keep the target's texts for other drafts; None removes them at the end.
    """

    target: ModelSettings
    settings: DistillSettings
    folder: Path
    held_out: Sequence[Conversation]
    own_prompts: Sequence[Conversation] = ()
    texts_folder: Path | None = None


@dataclass(frozen=True, slots=True)
class DistillProgress:
    """The progress of a distillation.

    Args:
        stage: `writing`, `training`, `measuring` or `saving`.
        num_done: Completed steps of the stage.
        num_steps: Steps of the stage.
        num_tokens: Tokens generated so far; 0 in other stages.
        loss: Mean loss of the last steps; None except in training.
        alpha: The last acceptance measured on held-out prompts; None before the first.
    """

    stage: Literal["writing", "training", "measuring", "saving"]
    num_done: int
    num_steps: int
    num_tokens: int = 0
    loss: float | None = None
    alpha: float | None = None


def _check_positive(settings: Any, *names: str) -> None:
    for name in names:
        _check(settings, name, getattr(settings, name) > 0, "above 0")


def _check(settings: Any, name: str, is_valid: bool, valid: str) -> None:
    if not is_valid:
        option = f"--{name.replace('_', '-')}"
        raise SettingsError(f"invalid {option} {getattr(settings, name)}: it must be {valid}")
