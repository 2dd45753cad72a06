"""The rule of near ties: a fixed number of ULP of the compute type."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from specgen.core.results import LogitGap, ModelInfo
from specgen.engine.enumeration import TableModel
from specgen.engine.near_ties import MIN_TOLERANCE, NUM_ULPS, compute_type, logit_gap, ulp
from specgen.verify.results import TextCheck
from tests.fakes import cached, tiny_model


def info(dtype: str, quant: str = "none") -> ModelInfo:
    return ModelInfo("model", quant, dtype, "cpu")


def table(first: float, second: float) -> TableModel:
    """After token 1, token 2 has the first logit and token 3 the second."""
    logits = torch.full((6, 6), -50.0)
    logits[1, 2], logits[1, 3] = first, second
    return TableModel(logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("size", [0.75, 1.0, 7.5, 8.0, 15.0, 16.0, 31.0])
def test_an_ulp_is_the_distance_to_the_next_number(dtype: torch.dtype, size: float) -> None:
    number = torch.tensor(size, dtype=dtype)
    bits = {torch.float32: torch.int32}.get(dtype, torch.int16)
    above = (number.view(bits) + 1).view(dtype)

    assert ulp(dtype, size) == float(above) - float(number)


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_zero_infinity_and_nan_have_no_ulp(size: float) -> None:
    assert ulp(torch.bfloat16, size) == 0.0


@pytest.mark.parametrize(
    ("dtype", "limit"),
    # bfloat16 from 8 to 16: steps of 1/16, and four of them.
    [("bfloat16", 0.25), ("float16", 4 * 8 / 1024), ("float32", MIN_TOLERANCE)],
)
def test_the_tolerance_is_four_ulp_at_the_logits_size_and_at_least_the_minimum(dtype: str, limit: float) -> None:
    just_within = logit_gap(table(9.0, 9.0 - limit * 0.99), info(dtype), [0, 1], 2, 3)
    beyond = logit_gap(table(9.0, 9.0 - limit * 1.01), info(dtype), [0, 1], 2, 3)

    assert just_within.tolerance == beyond.tolerance == limit
    assert (just_within.is_near_tie, beyond.is_near_tie) == (True, False)
    assert NUM_ULPS == 4


def test_the_gap_does_not_depend_on_the_order_of_the_tokens() -> None:
    there, back = (logit_gap(table(9.0, 8.0), info("float32"), [0, 1], *pair) for pair in ((2, 3), (3, 2)))

    assert there == back == LogitGap(1.0, MIN_TOLERANCE)


def test_nan_and_infinity_are_not_near_ties() -> None:
    assert not logit_gap(table(math.nan, 8.0), info("bfloat16"), [0, 1], 2, 3).is_near_tie
    assert not logit_gap(table(math.inf, 8.0), info("bfloat16"), [0, 1], 2, 3).is_near_tie


@pytest.mark.parametrize(
    ("quant", "dtype"), [("Q4_K", torch.bfloat16), ("Q8_0", torch.bfloat16), ("F16", torch.float16)]
)
def test_llama_cpp_has_the_ulp_of_the_type_it_rounds_to(quant: str, dtype: torch.dtype) -> None:
    assert compute_type(info("mixed", quant)) == dtype


def test_int8_layers_have_the_ulp_of_their_rounded_inputs() -> None:
    assert compute_type(info("float32", "int8")) == torch.bfloat16
    assert compute_type(info("float32", "none")) == torch.float32


def test_packed_weights_have_the_ulp_of_their_arithmetic() -> None:
    assert compute_type(replace(info("bfloat16"), arithmetic="float32")) == torch.float32
    assert compute_type(replace(info("float32", "nf4"), arithmetic="int8")) == torch.bfloat16


def test_the_logits_follow_the_whole_text() -> None:
    model = tiny_model()
    target, text = cached(model), list(range(5, 25))
    target.feed([9, 9, 9])
    wanted = model(torch.tensor([text])).logits[0, -1].detach()

    gap = logit_gap(target, info("float32"), text, 30, 31)

    assert gap.distance == pytest.approx(abs(float(wanted[30] - wanted[31])), abs=1e-4)
    assert target.length == 0


@pytest.mark.parametrize(
    ("gap", "verdict"), [(None, "same"), (LogitGap(1e-3, 1e-3), "near-tie"), (LogitGap(0.26, 0.25), "different")]
)
def test_a_texts_verdict_is_that_of_its_gap(gap: LogitGap | None, verdict: str) -> None:
    assert TextCheck("p", 10, 5, 3, None if gap is None else 4, gap).verdict == verdict
