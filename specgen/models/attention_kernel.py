"""Lets rows attend, each alone, by a kernel of our own: for passes of a few tokens in float32 on CPUs with AVX2.

torch's kernels compute rows together, and round otherwise than for one row. One call for each row keeps rows exact,
and took a quarter of a pass over eight tokens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from specgen.core.draft_tree import path_to
from specgen.models.attention_code import ARGUMENTS, AttentionShape, attention_code
from specgen.models.attention_loops import TOGETHER
from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.kv_store_code import store_code
from specgen.models.native_code import Function, NativeCode, bits_of, openmp_parallel
from specgen.models.vector_code import LANES

MAX_HEAD_SIZE = 256
"""Largest size: the sums of a head stay in the registers."""
MOST_SUMS = {64: 28, 32: 8}
"""Vectors of sums that stay in the registers, by bytes of a vector: there are 32 of 64 bytes, or 16 of 32 bytes, two of
which make a vector of sums."""
CHUNK_BYTES = 2**13
"""Bytes of the keys of a chunk. With its values and the queries, it fits into the nearest cache."""
WHOLE = 2**40
"""A chunk of all positions, for a single row."""
READING_ROWS = 0.5
"""To read keys and values from a farther cache takes as long as so many rows take to compute with them."""
_Arguments = ctypes.c_int64 * len(ARGUMENTS)


@dataclass(frozen=True, slots=True)
class SeenPositions:
    """Which stored positions each row of a pass sees.

    Args:
        starts: The first one, int64 `[n]`.
        num_before: Number of consecutive positions from there on, int64 `[n]`.
        others: Positions that follow in the row's order, int64 `[n, most]`; at least one column.
        num_seen: Number of all positions, int64 `[n]`.
        most: The largest of them.
    """

    starts: Tensor
    num_before: Tensor
    others: Tensor
    num_seen: Tensor
    most: int


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows of a pass.

    Args:
        heads: Queries and keys, float32 `[n, heads + kv_heads, head_size]`; the values of a row are contiguous.
        values: float32 `[n, kv_heads, head_size]`; the values of a row are contiguous.
        table: Cosines and sines, contiguous, `[n, 1, rotary_size]`; None: nothing is rotated.
        first: Position where the first row is stored; the others follow.
    """

    heads: Tensor
    values: Tensor
    table: tuple[Tensor, Tensor] | None
    first: int


def seen_by_rows(first: int, num_rows: int, window: int | None, parents: Sequence[int] = ()) -> SeenPositions:
    """Returns what the rows of a pass see: the positions before it, and in it their ancestors and themselves.

    Args:
        first: Number of positions before the pass; its rows are stored from there on.
        num_rows: Number of rows.
        window: A row sees this many positions at most, its own being the last; None: all.
        parents: Of a tree, of which these are the last rows; empty: each row follows the one before.
    """
    starts, before, others = [], [], []
    for row in range(len(parents) - num_rows, len(parents)) if parents else range(num_rows):
        path = path_to(parents, row) if parents else range(row + 1)
        num_hidden = 0 if window is None else max(0, first + len(path) - window)
        starts.append(min(num_hidden, first))
        before.append(first - starts[-1])
        others.append([first + row for row in path[max(0, num_hidden - first) :]])
    width = max(map(len, others))
    seen = [number + len(path) for number, path in zip(before, others, strict=True)]
    columns = [path + [0] * (width - len(path)) for path in others]
    return SeenPositions(_whole(starts), _whole(before), _whole(columns), _whole(seen), max(seen))


def _whole(values: Sequence[int] | Sequence[list[int]]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device="cpu")


class AttentionKernel:
    """The compiled kernel of a model's heads."""

    def __init__(self, shape: AttentionShape) -> None:
        self._shape = shape
        self._chunk = CHUNK_BYTES // (4 * TOGETHER * shape.head_size) * TOGETHER
        self.code = NativeCode(attention_code(shape) + store_code(shape, ARGUMENTS))
        self._run: Function = self.code.function("run", 4)
        self._move: Function = self.code.function("move", 6)

    @property
    def rotary_size(self) -> int:
        """Channels that the kernel can rotate; 0: none."""
        return self._shape.rotary_size

    def __deepcopy__(self, memo: object) -> AttentionKernel:
        """Returns itself: copies of a model share the code."""
        return self

    def num_scores(self, num_rows: int, seen: SeenPositions) -> int:
        """Returns how many float32 values of memory the scores of a pass take."""
        return num_rows * self._shape.num_heads * _scores_stride(seen)

    def attend(self, new: NewRows, stored: tuple[Tensor, Tensor], seen: SeenPositions, scale: float) -> Tensor:
        """Stores the keys and values of all rows of a pass, and attends with their queries.

        Args:
            new: The rows; their queries are rotated in place.
            stored: Keys and values, float32 `[kv_heads, capacity, head_size]`, contiguous.
            seen: Positions of the stored keys by row.
            scale: Factor of the scores.

        Returns:
            float32 `[n, heads * head_size]`.
        """
        num_rows = new.heads.shape[0]
        outputs = new.heads.new_empty(num_rows, self._shape.num_heads * self._shape.head_size)
        scores = new.heads.new_empty(self.num_scores(num_rows, seen))
        arguments = _Arguments(*self.arguments(new, stored, seen, scale, (outputs, scores)))
        self._run(ctypes.addressof(arguments), 0, openmp_parallel() or 0, torch.get_num_threads())
        return outputs

    def move(self, stored: Sequence[Tensor], positions: Sequence[int], first: int) -> None:
        """Moves positions of stored keys and values to those from `first` on.

        Args:
            stored: float32 `[kv_heads, capacity, head_size]` each, contiguous and of one size.
            positions: In ascending order, none of them in front of its new place; at least one.
            first: Where the first of them goes.
        """
        # By torch that takes three calls for each tensor: 0.5 ms for 30 layers, a tenth of a pass of SmolLM2-135M.
        tensors = (ctypes.c_int64 * len(stored))(*[tensor.data_ptr() for tensor in stored])
        places = (ctypes.c_int64 * len(positions))(*positions)
        addresses = ctypes.addressof(tensors), ctypes.addressof(places)
        self._move(addresses[0], len(stored), stored[0].stride(0), addresses[1], first, len(positions))

    def arguments(
        self,
        new: NewRows,
        stored: tuple[Tensor, Tensor],
        seen: SeenPositions,
        scale: float,
        memory: tuple[Tensor, Tensor],
    ) -> list[int]:
        """Returns what the kernel reads: see `ARGUMENTS`. The tensors must live until it has run.

        Args:
            new: As in `attend`; so are the next three.
            memory: For the outputs, contiguous, and for `num_scores` scores.
        """
        table = (0, 0) if new.table is None else (new.table[0].data_ptr(), new.table[1].data_ptr())
        tensors = (*stored, *memory, seen.starts, seen.num_before, seen.others, seen.num_seen)
        num_rows, num_blocks = new.heads.shape[0], self._shape.num_heads // self._shape.num_together
        at_once = rows_at_once(num_rows, num_blocks, torch.get_num_threads())
        return [
            *(new.heads.data_ptr(), new.values.data_ptr(), *table, *(tensor.data_ptr() for tensor in tensors)),
            *(num_rows, new.heads.stride(0), new.values.stride(0), new.first, stored[0].stride(0)),
            *(seen.others.shape[1], _scores_stride(seen)),
            *(at_once, self._chunk if at_once > 1 else WHOLE, bits_of(scale), 0),
        ]


@lru_cache
def rows_at_once(num_rows: int, num_blocks: int, num_threads: int) -> int:
    """Returns how many rows a thread claims at once, so that all threads end early and read little.

    Args:
        num_rows: Rows of a pass.
        num_blocks: Tasks of so many rows.
        num_threads: Threads.
    """

    def cost(number: int) -> float:
        num_tasks = -(-num_rows // number) * num_blocks
        return -(-num_tasks // num_threads) * (number + READING_ROWS)

    return min(range(num_rows, 0, -1), key=cost)


def _scores_stride(seen: SeenPositions) -> int:
    return (-(-seen.most // LANES) + 1) * LANES


def has_attention_kernel() -> bool:
    """Returns whether this machine runs the kernel."""
    return cpu_vectors() is not None


def kernel_for(spec: DecoderSpec) -> AttentionKernel | None:
    """Returns the kernel for a decoder, or None: see `attention_kernel`. It does not cap scores."""
    if spec.attention_soft_cap:
        return None
    sizes = {layer.rotary.size for layer in spec.layers if layer.rotary is not None}
    size = sizes.pop() if len(sizes) == 1 else 0
    rotary_size = size if size % (2 * LANES) == 0 else 0
    group = spec.num_heads // spec.num_kv_heads
    together = heads_together(spec.num_heads, group, spec.head_size)
    return attention_kernel(AttentionShape(spec.num_heads, group, spec.head_size, rotary_size, together))


def heads_together(num_heads: int, group: int, head_size: int) -> int:
    """Returns how many heads with the same keys and values to compute at once: each key is then loaded once for all.

    Their sums stay in the registers, and all threads have heads of a single row to compute.
    """
    vectors = cpu_vectors()
    most = max(1 if vectors is None else MOST_SUMS[vectors.num_bytes] * LANES // head_size, 1)
    divisors = [number for number in range(1, min(group, most) + 1) if group % number == 0]
    return max((number for number in divisors if num_heads // number >= torch.get_num_threads()), default=1)


@lru_cache(maxsize=8)
def attention_kernel(shape: AttentionShape) -> AttentionKernel | None:
    """Returns the kernel for heads on this machine; None if it runs no kernels of our own."""
    if not has_attention_kernel() or shape.head_size % LANES or shape.head_size > MAX_HEAD_SIZE:
        return None
    try:
        return AttentionKernel(shape)
    except RuntimeError:
        return None
