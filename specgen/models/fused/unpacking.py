"""Assembly that turns packed nf4 weights into 16-bit numbers."""

from __future__ import annotations

from functools import cache

import torch

NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""Values of the codes 0 to 15 (Dettmers et al. 2023, QLoRA, appendix E)."""
_HALF = """
prmt.b32 a, {high[0]}, {high[1]}, low{half};
prmt.b32 b, {high[2]}, {high[3]}, low{half};
prmt.b32 h, a, b, choice{half};
prmt.b32 a, {low[0]}, {low[1]}, low{half};
prmt.b32 b, {low[2]}, {low[3]}, low{half};
prmt.b32 l, a, b, choice{half};
prmt.b32 ${even}, l, h, 0x7351;
prmt.b32 ${odd}, l, h, 0x6240;
"""
_WHOLE = """{{
.reg .b32 low0, low1, choice0, choice1, a, b, h, l;
and.b32 low0, $4, 0x77777777;
shr.u32 low1, low0, 16;
shr.u32 choice0, $4, 1;
lop3.b32 choice0, choice0, 0x44444444, 0x32103210, 0xEA;
shr.u32 choice1, choice0, 16;
{first}{second}}}"""


@cache
def unpacking(dtype: torch.dtype) -> str:
    """Returns PTX that unpacks four bytes, `$4`: the even weights to `$0` and `$1`, the odd ones to `$2` and `$3`.

    `prmt` picks four bytes out of eight by the low three bits of four halves of the bytes: once out of the values of
    the codes below 8, and once out of the others. The fourth bits then choose between both (`choice`), for the high and
    for the low bytes of the values.

    The words are constants in the text: as inputs, they made Triton send all weights through shared memory.
    """
    numbers = torch.tensor(NF4).to(dtype).view(torch.uint8).view(16, 2)  # low byte first
    words = [hex(word & 0xFFFFFFFF) for word in numbers.t().contiguous().view(torch.int32).flatten().tolist()]
    planes = {"low": words[:4], "high": words[4:]}
    first = _HALF.format(half=0, even=0, odd=2, **planes)
    return _WHOLE.format(first=first, second=_HALF.format(half=1, even=1, odd=3, **planes))
