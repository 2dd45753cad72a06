"""A function that runs in inference mode."""

from __future__ import annotations

import pytest
import torch

from specgen.engine.inference_mode import in_inference_mode


@pytest.mark.parametrize("is_on", [False, True])
def test_a_function_runs_in_inference_mode_and_leaves_the_callers(is_on: bool) -> None:
    @in_inference_mode
    def made(value: float, *, is_grown: bool) -> torch.Tensor:
        return torch.full((1,), value) + is_grown

    with torch.inference_mode(is_on):
        tensor = made(1.0, is_grown=True)
        assert torch.is_inference_mode_enabled() == is_on
    assert tensor.is_inference()
    assert tensor.tolist() == [2.0]
