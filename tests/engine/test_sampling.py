"""Processors equal transformers' own, row by row."""

from __future__ import annotations

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specgen.core.settings import SamplingSettings
from specgen.engine import truncation
from specgen.engine.randomness import PositionNoise
from specgen.engine.sampling import largest_probability, likeliest, token_distributions
from specgen.engine.seen_tokens import SeenTokens
from specgen.engine.truncation import BLOCK_COLUMNS, largest, probs_by_sorting, probs_of_candidates
from tests.fake_cuda import fake_cuda
from tests.fakes import CPU


def transformers_distribution(logits: torch.Tensor, ids: list[int], settings: SamplingSettings) -> torch.Tensor:
    processors = LogitsProcessorList()
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    processors.append(TemperatureLogitsWarper(settings.temperature))
    if settings.top_k:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        processors.append(MinPLogitsWarper(settings.min_p))
    return processors(torch.tensor([ids]), logits.unsqueeze(0).clone()).softmax(-1)[0]


@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.8]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([0.1, 0.5, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.6]),
    penalty=st.sampled_from([1.0, 0.8, 1.3]),
)
def test_each_row_of_a_draft_has_transformers_distribution(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    settings = SamplingSettings(temperature, top_k, top_p, min_p, penalty)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 12, generator=generator, dtype=torch.float64) * 3
    text, draft = [1, 4, 4], torch.tensor([7, 2])

    seen = SeenTokens(12, CPU)
    seen.update(text)

    rows = token_distributions(logits, settings, seen.rows(draft))

    for row in range(3):
        wanted = transformers_distribution(logits[row], [*text, *draft[:row].tolist()], settings)
        assert torch.allclose(rows.probs[row], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.3, 4.0])
@pytest.mark.parametrize(
    "settings",
    [
        *(SamplingSettings(0.7, top_p=top_p) for top_p in (1e-6, 0.3, 0.8, 0.95, 0.999)),
        *(SamplingSettings(0.7, top_k=top_k) for top_k in (1, 20, 1499, 1500)),
        *(SamplingSettings(0.7, min_p=min_p) for min_p in (1e-6, 0.05, 0.99)),
        *(SamplingSettings(0.7, 20, 0.8), SamplingSettings(1.3, 500, 0.9, 0.01), SamplingSettings(1e-9, 5, 0.9)),
    ],
    ids=str,
)
def test_rows_on_the_host_keep_what_sorted_rows_keep(
    settings: SamplingSettings, scale: float, dtype: torch.dtype
) -> None:
    logits = torch.randn(4, 1500, generator=torch.Generator().manual_seed(1), dtype=dtype) * scale
    logits[1, 3:700] = -torch.inf
    logits[2, :200] = logits[2, 200:400]  # ties
    top_logits = logits.amax(dim=-1)

    found = probs_of_candidates(logits, top_logits, settings)

    # Which of several equal tokens a sorted row keeps is left to chance.
    wanted = probs_by_sorting(logits.double(), top_logits.double(), settings).to(dtype)
    torch.testing.assert_close(found.sort().values, wanted.sort().values, rtol=2e-6, atol=1e-12)
    untied = [0, 1, 3]
    torch.testing.assert_close(found[untied], wanted[untied], rtol=2e-6, atol=1e-12)


def test_temperature_zero_is_a_point_mass() -> None:
    rows = token_distributions(torch.tensor([[1.0, 3.0, 2.0]]), SamplingSettings(temperature=0))

    assert rows.probs is None
    assert rows.ids.tolist() == [1]


def test_a_draft_on_the_cpu_draws_with_the_noise_of_a_target_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        logits = torch.randn(3, 12, generator=torch.Generator().manual_seed(1))
        noise = PositionNoise(3, 14, torch.device("cuda")).rows(7, 3)
        values = noise.cpu()[:, :12]

        ids = token_distributions(logits, SamplingSettings(temperature=1), None, noise).ids

        assert ids.device == CPU
        assert ids.tolist() == (logits.softmax(-1) / values).argmax(-1).tolist()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_a_temperature_outside_of_float32_is_the_nearest_inside(temperature: float, top_p: float) -> None:
    logits = torch.tensor([[1.0, 3.0, -torch.inf, 2.0]])

    probs = token_distributions(logits, SamplingSettings(temperature, top_p=top_p)).probs

    expected = [0.0, 1.0, 0.0, 0.0] if temperature < 1 else [1 / 3, 1 / 3, 0.0, 1 / 3]
    assert probs is not None
    assert probs[0].tolist() == pytest.approx(expected)


@pytest.mark.fault("F10")
def test_a_tiny_temperature_equals_greedy() -> None:
    rows = token_distributions(torch.tensor([[1.0, 3.0, 2.999]]), SamplingSettings(temperature=1e-30))

    assert rows.probs is not None
    assert rows.probs.tolist() == [[0.0, 1.0, 0.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_are_noticed(bad: float, temperature: float) -> None:
    logits = torch.zeros(3, 5)
    logits[1, 2] = bad

    assert not bool(token_distributions(logits, SamplingSettings(temperature)).is_finite)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 7, 96, 1001])
def test_the_likeliest_token_is_the_first_of_the_largest(dtype: torch.dtype, width: int) -> None:
    # Rows of a wider buffer, as engines hand them out; small integers make ties common.
    whole = torch.randint(-4, 5, (20, width + 3), generator=torch.Generator().manual_seed(width)).to(dtype)
    rows = whole[:, :width]

    values, ids = likeliest(rows)

    expected = [row.index(max(row)) for row in rows.tolist()]
    assert ids.tolist() == expected
    assert values.tolist() == [row[i] for row, i in zip(rows.tolist(), expected, strict=True)]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_no_place_hides_a_broken_logit(bad: float) -> None:
    for position in range(300):
        logits = torch.linspace(-1, 1, 300).repeat(2, 1)
        logits[1, position] = bad

        values, ids = likeliest(logits)

        assert values.isfinite().tolist() == [True, False]
        assert ids.tolist() == [299, position]


@pytest.mark.fault("F11")
def test_a_row_of_nothing_but_minus_infinity_is_broken() -> None:
    assert not bool(token_distributions(torch.full((1, 4), -torch.inf), SamplingSettings(1.0)).is_finite)


@given(st.integers(1, 5 * BLOCK_COLUMNS), st.integers(1, 4), st.integers(1, 6), st.integers(0, 10_000))
def test_the_largest_values_are_those_of_a_sorted_row(columns: int, rows: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.stack([torch.randperm(columns, generator=generator) for _ in range(rows)]).float()
    count = min(count, columns)

    with patch.object(truncation, "MIN_BLOCKS", 1):
        found, places = largest(values, count)

    for row in range(rows):
        expected = sorted(values[row].tolist(), reverse=True)[:count]
        assert found[row].tolist() == expected
        assert values[row, places[row]].tolist() == expected


@pytest.mark.parametrize("column", [0, 100, 299])
def test_nan_is_larger_than_all_other_values(monkeypatch: pytest.MonkeyPatch, column: int) -> None:
    values = torch.randn(2, 300)
    values[1, column] = torch.nan

    monkeypatch.setattr(truncation, "MIN_BLOCKS", 1)
    found, places = largest(values, 2)

    assert bool(found[1, 0].isnan())
    assert int(places[1, 0]) == column
    assert bool(found[0].isfinite().all())


def test_the_largest_probability_counts_what_is_not_computed_as_zero() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, -torch.inf]])

    assert largest_probability(logits) == pytest.approx(math.exp(3) / (math.exp(1) + math.exp(3) + math.exp(2)))
