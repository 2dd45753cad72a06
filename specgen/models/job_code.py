"""Writes what threads do for a product, in LLVM IR: together they pack its rows, and then they multiply them."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.vector_code import ARGUMENTS, NOTHING, load_arguments

INPUTS_AT_ONCE = 128
"""Inputs that a thread packs at once, of all rows."""


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
    """Returns a function that runs on each thread, and gets the arguments.

    A thread that finds no more rows or inputs to pack waits until the others have packed theirs.

    Args:
        name: Of the function.
        job: What it does.
    """
    loads = load_arguments(ARGUMENTS, ("num_rows", "size", "prologue", "prepared", "inputs"))
    order = list(ARGUMENTS)
    counters = [
        f"  %{counter} = getelementptr i64, ptr %arguments, i64 {order.index(counter)}"
        for counter in ("rows_claimed", "rows_done", "parts_claimed", "parts_done")
    ]
    row = ["  %row_at = call ptr @prepared(ptr %arguments, i64 %row)"]
    if job.pack_row:
        row.append(f"  call void @{job.pack_row}(ptr %arguments, ptr %row_at, i64 %row)")
    part = [
        f"  %first = mul i64 %part, {INPUTS_AT_ONCE}",
        f"  %end = add i64 %first, {INPUTS_AT_ONCE}",
        "  %last = call i64 @llvm.umin.i64(i64 %end, i64 %size)",
        f"  call void @{job.pack_inputs}(ptr %arguments, ptr %all_rows, i64 %first, i64 %last)",
    ]
    after_rows = "part_claim" if job.pack_inputs else "multiply"
    return "\n".join(
        [
            f"define void @{name}(ptr %arguments) {{",
            "entry:",
            *loads,
            *counters,
            f"  %is_nothing = icmp eq i64 %prologue, {NOTHING}",
            "  %all_rows = select i1 %is_nothing, ptr %inputs, ptr %prepared",
            f"  %size_up = add i64 %size, {INPUTS_AT_ONCE - 1}",
            f"  %num_parts = udiv i64 %size_up, {INPUTS_AT_ONCE}",
            f"  %is_ready = and i1 %is_nothing, {'false' if job.pack_row else 'true'}",
            f"  br i1 %is_ready, label %{after_rows}, label %row_claim",
            *_together("row", "%num_rows", row, after_rows),
            *(_together("part", "%num_parts", part, "multiply") if job.pack_inputs else []),
            "multiply:",
            f"  call void @{job.multiply}(ptr %arguments)",
            "  ret void",
            "}",
        ]
    )


def _together(name: str, number: str, lines: list[str], following: str) -> list[str]:
    """Returns what claims rows or parts, and waits for those of other threads.

    Args:
        name: Of the index.
        number: Of all.
        lines: What is done with one.
        following: Where it goes on.
    """
    return [
        f"{name}_claim:",
        f"  %{name} = atomicrmw add ptr %{name}s_claimed, i64 1 monotonic",
        f"  %{name}_is_any = icmp ult i64 %{name}, {number}",
        f"  br i1 %{name}_is_any, label %{name}_take, label %{name}_look",
        f"{name}_take:",
        *lines,
        f"  %{name}_before = atomicrmw add ptr %{name}s_done, i64 1 release",
        f"  br label %{name}_claim",
        f"{name}_look:",
        f"  %{name}_done = load atomic i64, ptr %{name}s_done acquire, align 8",
        f"  %{name}_are_all = icmp eq i64 %{name}_done, {number}",
        f"  br i1 %{name}_are_all, label %{following}, label %{name}_wait",
        f"{name}_wait:",
        "  call void @llvm.x86.sse2.pause()",
        f"  br label %{name}_look",
    ]
