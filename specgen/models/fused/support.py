"""Decides whether fused kernels compute a decoder's passes over few rows."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec

import torch

from specgen.models.decoder_spec import DecoderSpec

LARGEST_HEAD = 256
"""Channels of a head: two tiles of keys and values of more don't fit into the shared memory of all cards."""


def fuses(spec: DecoderSpec, like: torch.Tensor) -> bool:
    """Returns whether the kernels compute what a decoder does.

    Args:
        spec: Describes it.
        like: A tensor of the type and device that it computes in.
    """
    is_half = like.dtype in (torch.bfloat16, torch.float16)
    return is_half and like.is_cuda and fits(spec) and has_triton(like.device)


def kinds_of_passes(*segments: tuple[DecoderSpec, torch.Tensor]) -> tuple[bool, ...]:
    """Returns what to try, the fastest first: passes on the fused kernels, if all segments fit, and others."""
    return (True, False) if all(fuses(spec, like) for spec, like in segments) else (False,)


def fits(spec: DecoderSpec) -> bool:
    """Returns whether the kernels have all that a decoder consists of."""
    return spec.qk_norm != "all" and spec.head_size <= LARGEST_HEAD


@cache
def launch_options(device: torch.device) -> Mapping[str, bool]:
    """Returns options of each launch: whether a kernel may start while the one before still runs.

    See `dependent_launch`.
    """
    is_dependent = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
    return {"IS_DEPENDENT": True, "launch_pdl": True} if is_dependent else {"IS_DEPENDENT": False}


def launching_on(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Makes Triton start kernels on a tensor's device: it takes the current one."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@cache
def has_triton(device: torch.device) -> bool:
    """Returns whether Triton is installed and compiles for a device. PyTorch's wheels for CUDA on Linux bring it."""
    if torch.version.cuda is None or find_spec("triton") is None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)
