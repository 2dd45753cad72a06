"""Threads claim outputs of a product until none are left."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from ctypes import addressof, c_int64

import pytest

from specgen.models.cpu_vectors import cpu_vectors
from specgen.models.native_code import NativeCode
from specgen.models.thread_code import CLAIM, CLAIM_ARGUMENTS

pytestmark = pytest.mark.skipif(cpu_vectors() is None, reason="needs AVX2")
CODE = f"""{CLAIM}
define void @run({CLAIM_ARGUMENTS}, ptr %start) {{
  %found = call i64 @claim({CLAIM_ARGUMENTS})
  store i64 %found, ptr %start
  ret void
}}
"""


@pytest.fixture(scope="module")
def code() -> NativeCode:
    return NativeCode(CODE)


def claims_of(code: NativeCode, counter: c_int64, num_outputs: int, *sizes: int) -> list[tuple[int, int]]:
    """Claims until nothing is left: the first output of each claim, and the one after its last."""
    start, end = c_int64(), c_int64()
    found: list[tuple[int, int]] = []
    claim = code.function("run", 7)
    while True:
        claim(addressof(counter), num_outputs, *sizes, addressof(end), addressof(start))
        if start.value >= num_outputs:
            return found
        found.append((start.value, end.value))


@pytest.mark.parametrize(
    ("num_outputs", "chunk", "unit", "num_threads"),
    [(1, 16, 16, 2), (16, 16, 16, 1), (100, 64, 16, 2), (5000, 512, 16, 2), (5000, 528, 48, 3), (151936, 4096, 32, 16)],
)
def test_each_output_is_claimed_once_in_whole_units(
    code: NativeCode, num_outputs: int, chunk: int, unit: int, num_threads: int
) -> None:
    counter = c_int64(0)
    with ThreadPoolExecutor(num_threads) as pool:
        jobs = [
            pool.submit(claims_of, code, counter, num_outputs, chunk, unit, num_threads) for _ in range(num_threads)
        ]
        claims = sorted(found for job in jobs for found in job.result())
    assert [start for start, _ in claims] == [0, *(end for _, end in claims[:-1])]
    assert claims[-1][1] == num_outputs
    assert all(start % unit == 0 and 0 < end - start <= chunk for start, end in claims)


def test_a_thread_claims_its_share_of_what_is_left_between_the_bounds(code: NativeCode) -> None:
    claims = claims_of(code, c_int64(0), 1000, 304, 16, 2)
    # Half of 1000, 696, 392, 200 and so on, in whole units, at most 304 and at least 16.
    assert [end - start for start, end in claims] == [304, 304, 192, 96, 48, 16, 16, 16, 8]
