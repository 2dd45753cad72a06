"""Writes what threads do for a product, in LLVM IR: they pack its rows, and then they multiply them."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.vector_code import ARGUMENTS, NOTHING, PACKED, load_arguments

INPUTS_UNIT = 64
"""Threads pack multiples of so many inputs."""
LEAST_SHARED = 2**13
"""From so many values on, threads share the packing of several rows. For fewer, they wait longer for each other than
they gain: on two cores of an Intel Xeon (model 207), 8 rows of 576 inputs in int8 took 13.6 us if one thread packed
them, and 15.6 if both did, 16 rows 20.1 and 17.9."""


@dataclass(frozen=True, slots=True)
class Job:
    """Names of the functions of a format's code that a thread calls.

    Args:
        multiply: It gets the arguments, and claims outputs until none are left.
        pack_row: It gets the arguments, the address of a row after the prologue, and the row's index. None: a row is
            not packed for itself.
        pack_inputs: It gets the arguments, the address of all rows after the prologue, and the first of some inputs and
            the one after the last. It is called when all rows have gone through `pack_row`. None: it is not needed.
    """

    multiply: str
    pack_row: str | None = None
    pack_inputs: str | None = None


def job_code(name: str, job: Job) -> str:
    """Returns a function that lets threads do a job. It gets what `run` gets: see `Kernels`.

    Args:
        name: Of the function.
        job: What they do.
    """
    loads = "\n".join(load_arguments(ARGUMENTS, ("num_rows", "size")))
    order = list(ARGUMENTS)
    reset = "\n".join(
        f"  %{counter} = getelementptr i64, ptr %arguments, i64 {order.index(counter)}\n  store i64 0, ptr %{counter}"
        for counter in PACKED
    )
    return f"""
{_alone(f"{name}_alone", job)}
{_together(f"{name}_together", job)}
define internal void @{name}(ptr %arguments, ptr %inputs, ptr %parallel, i64 %num_threads) {{
entry:
{loads}
  %num_values = mul i64 %num_rows, %size
  %are_enough = icmp uge i64 %num_values, {LEAST_SHARED}
  %are_several = icmp ugt i64 %num_rows, 1
  %is_shared = and i1 %are_enough, %are_several
  br i1 %is_shared, label %together, label %alone
together:
  %inputs_at = getelementptr i64, ptr %arguments, i64 {order.index("inputs")}
  store ptr %inputs, ptr %inputs_at
{reset}
  call void @on_threads(ptr @{name}_together, ptr %arguments, ptr %parallel, i64 %num_threads)
  ret void
alone:
  call void @{name}_alone(ptr %arguments, ptr %inputs)
  call void @on_threads(ptr @{job.multiply}, ptr %arguments, ptr %parallel, i64 %num_threads)
  ret void
}}
"""


def _alone(name: str, job: Job) -> str:
    """Returns a function that packs all rows on the thread that calls it."""
    lines = [
        f"define internal void @{name}(ptr %arguments, ptr %inputs) {{",
        "entry:",
        *_start(),
        *_pack_rows(job, ("0", "%num_rows"), "rows_packed"),
        "rows_packed:",
    ]
    if job.pack_inputs:
        lines.append(f"  call void @{job.pack_inputs}(ptr %arguments, ptr %all_rows, i64 0, i64 %size)")
    return "\n".join([*lines, "  ret void", "}"])


def _together(name: str, job: Job) -> str:
    """Returns a function that each thread runs: it packs its share with the others, and multiplies.

    If there is nothing left to claim, it waits until the others have packed theirs.
    """
    lines = [
        f"define void @{name}(ptr %arguments) {{",
        "entry:",
        *load_arguments(ARGUMENTS, ("inputs", "num_threads")),
        *_start(),
        *_shared("rows", "%num_rows", 1, _pack_rows(job, ("%rows_first", "%rows_last"), "rows_packed")),
    ]
    if job.pack_inputs:
        bounds = "i64 %inputs_first, i64 %inputs_last"
        call = f"  call void @{job.pack_inputs}(ptr %arguments, ptr %all_rows, {bounds})"
        lines += _shared("inputs", "%size", INPUTS_UNIT, [call, "  br label %inputs_packed"])
    return "\n".join([*lines, f"  call void @{job.multiply}(ptr %arguments)", "  ret void", "}"])


def _start() -> list[str]:
    """Returns what finds the rows after the prologue."""
    return [
        *load_arguments(ARGUMENTS, ("num_rows", "size", "prologue", "prepared")),
        f"  %is_nothing = icmp eq i64 %prologue, {NOTHING}",
        "  %all_rows = select i1 %is_nothing, ptr %inputs, ptr %prepared",
    ]


def _pack_rows(job: Job, bounds: tuple[str, str], following: str) -> list[str]:
    """Returns what computes the prologues of rows, and packs each; then it goes on at `following`."""
    return [
        f"  br i1 {'false' if job.pack_row else '%is_nothing'}, label %{following}, label %row_start",
        "row_start:",
        "  br label %row_loop",
        "row_loop:",
        f"  %row = phi i64 [ {bounds[0]}, %row_start ], [ %row_next, %row_loop ]",
        "  %row_at = call ptr @prepared(ptr %arguments, ptr %inputs, i64 %row)",
        *([f"  call void @{job.pack_row}(ptr %arguments, ptr %row_at, i64 %row)"] if job.pack_row else []),
        "  %row_next = add i64 %row, 1",
        f"  %row_more = icmp ult i64 %row_next, {bounds[1]}",
        f"  br i1 %row_more, label %row_loop, label %{following}",
    ]


def _shared(name: str, number: str, unit: int, lines: list[str]) -> list[str]:
    """Returns what claims rows or inputs, and waits for those of other threads.

    A thread claims its whole share at once, because each claim takes as long as a row of a small model.

    Args:
        name: Of them.
        number: Of all.
        unit: A share is a multiple of it.
        lines: Packs those from `%{name}_first` to `%{name}_last`, and goes on at `{name}_packed`.
    """
    index = {counter: list(ARGUMENTS).index(f"{name}_{counter}") for counter in ("claimed", "done")}
    return [
        *[f"  %{name}_{key} = getelementptr i64, ptr %arguments, i64 {place}" for key, place in index.items()],
        f"  %{name}_units = mul i64 %num_threads, {unit}",
        f"  %{name}_up = add i64 {number}, %{name}_units",
        f"  %{name}_up_less = sub i64 %{name}_up, 1",
        f"  %{name}_parts = udiv i64 %{name}_up_less, %{name}_units",
        f"  %{name}_share = mul i64 %{name}_parts, {unit}",
        f"  br label %{name}_claim",
        f"{name}_claim:",
        f"  %{name}_first = atomicrmw add ptr %{name}_claimed, i64 %{name}_share monotonic",
        f"  %{name}_is_any = icmp ult i64 %{name}_first, {number}",
        f"  br i1 %{name}_is_any, label %{name}_take, label %{name}_look",
        f"{name}_take:",
        f"  %{name}_end = add i64 %{name}_first, %{name}_share",
        f"  %{name}_last = call i64 @llvm.umin.i64(i64 %{name}_end, i64 {number})",
        f"  %{name}_count = sub i64 %{name}_last, %{name}_first",
        *lines,
        f"{name}_packed:",
        f"  %{name}_before = atomicrmw add ptr %{name}_done, i64 %{name}_count release",
        f"  br label %{name}_claim",
        f"{name}_look:",
        f"  %{name}_ready = load atomic i64, ptr %{name}_done acquire, align 8",
        f"  %{name}_are_all = icmp eq i64 %{name}_ready, {number}",
        f"  br i1 %{name}_are_all, label %{name}_end_of_wait, label %{name}_wait",
        f"{name}_wait:",
        "  call void @llvm.x86.sse2.pause()",
        f"  br label %{name}_look",
        f"{name}_end_of_wait:",
    ]
