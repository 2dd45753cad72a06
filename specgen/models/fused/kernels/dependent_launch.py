"""Starts a kernel while the one before it still runs, in Triton. Cards since Hopper can do so.

A kernel that reads little allows the next one to start at once. A product allows it when it has read its weights: an
earlier start would take room on the card from itself. Each kernel waits for the end of the one before it, before it
reads or writes anything. See programmatic dependent launch in CUDA's programming guide.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def wait(IS_DEPENDENT: tl.constexpr):
    """Waits until the kernel before has ended."""
    if IS_DEPENDENT:
        gdc_wait()


@triton.jit
def allow_next(IS_DEPENDENT: tl.constexpr):
    """Allows the next kernel to start, once all programs of this one have called it."""
    if IS_DEPENDENT:
        gdc_launch_dependents()
