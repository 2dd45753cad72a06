"""The order of inputs that nf4 products read, in Triton.

A byte of nf4 holds an even and an odd weight. So each block of 64 inputs is stored as its even ones, then its odd ones.
"""

import triton
import triton.language as tl


@triton.jit
def place(index, IS_SPLIT: tl.constexpr):
    """Returns where an input is stored."""
    if IS_SPLIT:
        index = index // 64 * 64 + index % 2 * 32 + index % 64 // 2
    return index
