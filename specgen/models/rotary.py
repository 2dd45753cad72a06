"""Computes rotary position embeddings: frequencies by rule, and tables of cosines and sines.

The rules are those of the checkpoints' own configs; formulas as in transformers' `modeling_rope_utils`, in float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from specgen.models.decoder_spec import RotarySpec


def inverse_frequencies(rotary: RotarySpec) -> tuple[Tensor, float]:
    """Returns the frequencies of the rotated pairs.

    Returns:
        float32 `[size / 2]` radians per position, and the factor of cosine and sine.

    Sources: Su et al. 2021 (arXiv:2104.09864); Peng et al. 2023 (arXiv:2309.00071) for `yarn`; the Llama 3.1 release
    for `llama3`.
    """
    exponents = torch.arange(0, rotary.size, 2, dtype=torch.int64).float() / rotary.size
    wavelengths = rotary.theta**exponents
    frequencies = 1.0 / wavelengths
    given = dict(rotary.parameters)
    if rotary.scaling == "linear":
        return frequencies / given["factor"], 1.0
    if rotary.scaling == "llama3":
        return _llama3(frequencies, given), 1.0
    if rotary.scaling == "longrope":
        return 1.0 / (torch.tensor(rotary.factors) * wavelengths), given["attention_factor"]
    if rotary.scaling == "yarn":
        return _yarn(rotary, wavelengths, given)
    return frequencies, 1.0


def rotary_table(rotary: RotarySpec, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns the cosines and sines at positions `[..., n]`, each `[..., n, size]`.

    The first half of the sines is negative, so that a rotation is `x * cos + roll(x, size / 2) * sin`.
    """
    frequencies, factor = inverse_frequencies(rotary)
    angles = positions[..., None].float() * frequencies.to(positions.device)
    cos, sin = angles.cos() * factor, angles.sin() * factor
    return torch.cat([cos, cos], dim=-1).to(dtype), torch.cat([-sin, sin], dim=-1).to(dtype)


def rotate(heads: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the first channels of heads `[..., n, heads, head_size]` by a table `[..., n, 1, size]`.

    It computes in the wider of the two types and returns that of the heads.
    """
    cos, sin = table
    size = cos.shape[-1]
    if size == heads.shape[-1]:
        return (heads * cos + heads.roll(size // 2, -1) * sin).to(heads.dtype)
    rotated, rest = heads[..., :size], heads[..., size:]
    return torch.cat([(rotated * cos + rotated.roll(size // 2, -1) * sin).to(heads.dtype), rest], dim=-1)


def _llama3(frequencies: Tensor, given: dict[str, float]) -> Tensor:
    """Stretches long wavelengths by `factor`, keeps short ones, and interpolates those between."""
    factor, low, high = given["factor"], given["low_freq_factor"], given["high_freq_factor"]
    context = given["original_max_position_embeddings"]
    wavelengths = 2 * math.pi / frequencies
    stretched = torch.where(wavelengths > context / low, frequencies / factor, frequencies)
    smooth = (context / wavelengths - low) / (high - low)
    between = (1 - smooth) * stretched / factor + smooth * stretched
    is_between = ~(wavelengths < context / high) * ~(wavelengths > context / low)
    return torch.where(is_between, between, stretched)


def _yarn(rotary: RotarySpec, wavelengths: Tensor, given: dict[str, float]) -> tuple[Tensor, float]:
    """Interpolates slow pairs by `factor` and leaves fast ones; cosine and sine get an attention factor."""
    factor, context = given["factor"], given["original_max_position_embeddings"]

    def correction(num_rotations: float) -> float:
        return rotary.size * math.log(context / (num_rotations * 2 * math.pi)) / (2 * math.log(rotary.theta))

    low, high = correction(given.get("beta_fast") or 32), correction(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary.size - 1)
    ramp = (torch.arange(rotary.size // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
    extrapolated = 1 - ramp.clamp(0, 1)
    frequencies = 1.0 / (factor * wavelengths) * (1 - extrapolated) + 1.0 / wavelengths * extrapolated
    return frequencies, _yarn_attention_factor(factor, given)


def _yarn_attention_factor(factor: float, given: dict[str, float]) -> float:
    def scale(weight: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if (found := given.get("attention_factor")) is not None:
        return float(found)
    weight, weight_all = given.get("mscale"), given.get("mscale_all_dim")
    return scale(weight) / scale(weight_all) if weight and weight_all else scale()
