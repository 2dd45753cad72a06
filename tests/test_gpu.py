"""Checks what needs a CUDA device: target and draft on different devices. Run with `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch

from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.clock import device_clock
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.models.transformers_model import TransformersModel
from tests.fakes import ids_of, tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PROMPT = [1, 17, 40, 17]
PLACES = [("cuda", "cuda"), ("cuda", "cpu"), ("cpu", "cuda")]


def on(device: str, seed: int) -> TransformersModel:
    # tiny_model caches its models, so a copy is moved to the device.
    model = type(tiny_model(seed=seed))(tiny_model(seed=seed).config).eval()
    model.load_state_dict(tiny_model(seed=seed).state_dict())
    return TransformersModel(model.to(device), 96)


def generated(target: TransformersModel, draft: TransformersModel | None, sampling: SamplingSettings) -> list[int]:
    sampler = Sampler.seeded(sampling, target.device, 96)
    drafter = NoDrafter() if draft is None else ModelDrafter(draft, 96, sampler)
    options = DecodeOptions(DecodeSettings(32, 4), clock=device_clock(target.device))
    return ids_of(list(decode(target, drafter, PROMPT, sampler, options)))


@pytest.mark.parametrize(("target", "draft"), PLACES)
@pytest.mark.fault("F46")
def test_greedy_text_does_not_depend_on_the_drafts_device(target: str, draft: str) -> None:
    greedy = SamplingSettings()

    assert generated(on(target, 0), on(draft, 1), greedy) == generated(on(target, 0), None, greedy)


@pytest.mark.parametrize(("target", "draft"), PLACES)
def test_sampling_works_across_devices(target: str, draft: str) -> None:
    sampling = SamplingSettings(temperature=1.0, top_k=20, repetition_penalty=1.1)

    assert len(generated(on(target, 0), on(draft, 1), sampling)) == 32


@pytest.mark.parametrize(("target", "draft"), PLACES)
def test_one_seed_gives_one_text_across_devices(target: str, draft: str) -> None:
    sampling = SamplingSettings(temperature=1.0, seed=3, same_text=True)

    assert generated(on(target, 0), on(draft, 1), sampling) == generated(on(target, 0), None, sampling)
