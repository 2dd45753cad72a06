"""Planted bugs in the rollback of running states: each is caught by a check that passes without it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from torch import Tensor

from specgen.models import running_states
from specgen.models.running_states import RunningStates
from specgen.models.transformers_model import TransformersModel
from tests.models.hybrid_checks import (
    check_greedy,
    check_law,
    check_states,
    reference,
)


def _keep(states: str, plant: pytest.MonkeyPatch) -> None:
    original = RunningStates.restore

    def forgetful(self: RunningStates, length: int) -> int:
        before = [copy.deepcopy(getattr(layer, states)) for layer in self._layers]
        kept = original(self, length)
        for layer, own in zip(self._layers, before, strict=True):
            setattr(layer, states, own)
        return kept

    plant.setattr(RunningStates, "restore", forgetful)


def not_restored(plant: pytest.MonkeyPatch) -> None:
    _keep("recurrent_states", plant)


def replay_one_short(plant: pytest.MonkeyPatch) -> None:
    original = TransformersModel._cut
    plant.setattr(TransformersModel, "_cut", lambda self, length: min(length, original(self, length) + 1))


def convolution_not_cropped(plant: pytest.MonkeyPatch) -> None:
    def attention_only(self: TransformersModel, num_tokens: int) -> None:
        for layer in self._cache.layers:
            layer.crop(0 if hasattr(layer, "conv_states") else -num_tokens)
        self._num_recorded = 0

    plant.setattr(TransformersModel, "_crop", attention_only)


def convolution_not_restored(plant: pytest.MonkeyPatch) -> None:
    _keep("conv_states", plant)


def position_off_by_one_after_replay(plant: pytest.MonkeyPatch) -> None:
    original, cut = TransformersModel._positions, TransformersModel._cut
    shifted: set[int] = set()

    def noting(self: TransformersModel, length: int) -> int:
        kept = cut(self, length)
        if kept < length:
            shifted.add(id(self))
        return kept

    def off(self: TransformersModel, new: Tensor) -> Tensor:
        is_shifted = id(self) in shifted
        shifted.discard(id(self))
        return original(self, new) + int(is_shifted)

    plant.setattr(TransformersModel, "_cut", noting)
    plant.setattr(TransformersModel, "_positions", off)


def copied_by_reference(plant: pytest.MonkeyPatch) -> None:
    plant.setattr(running_states, "_cloned", lambda states, _into: dict(states))


def check_replayed_greedy(kind: str) -> None:
    check_greedy(kind, "always-wrong")


Bug = Callable[[pytest.MonkeyPatch], None]
BUGS: list[tuple[Bug, Callable[[str], None], tuple[str, ...]]] = [
    (not_restored, check_states, ("Qwen3_5", "FalconH1", "Bamba")),
    (not_restored, check_replayed_greedy, ("Qwen3_5", "Mamba2")),
    (not_restored, check_law, ("Qwen3_5",)),
    (replay_one_short, check_states, ("Qwen3_5", "FalconH1")),
    (replay_one_short, check_replayed_greedy, ("Qwen3_5", "FalconH1")),
    (convolution_not_cropped, check_states, ("Lfm2",)),
    (convolution_not_cropped, check_law, ("Lfm2",)),
    (convolution_not_restored, check_states, ("Qwen3_5", "Bamba")),
    (position_off_by_one_after_replay, check_states, ("Qwen3_5", "FalconH1", "Bamba")),
    (position_off_by_one_after_replay, check_replayed_greedy, ("Qwen3_5", "FalconH1")),
    (copied_by_reference, check_states, ("Qwen3_5", "FalconH1")),
]


@pytest.mark.thorough
@pytest.mark.parametrize(("bug", "check", "kind"), [(bug, check, kind) for bug, check, kinds in BUGS for kind in kinds])
def test_planted_bugs_are_caught(
    bug: Bug, check: Callable[[str], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference(kind, 20)
    bug(monkeypatch)

    with pytest.raises((AssertionError, RuntimeError)):
        check(kind)
