"""Chooses the sizes of the passes that read a prompt on CUDA; they are not recorded."""

from __future__ import annotations

from specgen.models import cached_model
from specgen.models.decoder_spec import DecoderSpec

PREFILL_CHUNK = 2048
"""Tokens of one prefill pass of specgen's decoder on CUDA.

A pass of that many rows unpacks 4-bit weights, which moves 4.5 bytes a weight in bitsandbytes 0.50: at 512 rows that
would take about as long as the products, by their sizes. The launches of a pass that is not recorded take long, too.
"""
PREFILL_STEP = 64
"""A prefill pass reads the cache up to a multiple of this: attention kernels want aligned masks."""


def prefill_chunk(spec: DecoderSpec | None) -> int:
    """Returns the tokens of one prefill pass: few where attention stores the scores of all rows.

    Args:
        spec: Describes specgen's decoder; None for a model of transformers.
    """
    stores_scores = spec is None or spec.attention_soft_cap is not None
    return cached_model.PREFILL_CHUNK if stores_scores else PREFILL_CHUNK


def prefill_bucket(num_positions: int, capacity: int) -> int:
    """Returns how much of the cache a pass reads that is not recorded."""
    return min(-(-num_positions // PREFILL_STEP) * PREFILL_STEP, capacity)
