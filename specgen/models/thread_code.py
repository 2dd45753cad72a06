"""Writes what divides a kernel's work among threads, in LLVM IR."""

from __future__ import annotations

ON_THREADS = """
define internal void @on_threads(ptr %job, ptr %arguments, ptr %parallel, i64 %num_threads) {
entry:
  %is_alone = icmp eq i64 %num_threads, 1
  br i1 %is_alone, label %alone, label %together
alone:
  call void %job(ptr %arguments)
  ret void
together:
  %threads = trunc i64 %num_threads to i32
  call void %parallel(ptr %job, ptr %arguments, i32 %threads, i32 0)
  ret void
}
"""
"""Runs a job on this thread, or on several by OpenMP's entry point; each gets the same arguments."""


CLAIM = """
declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
define internal i64 @claim(ptr %counter, i64 %num_outputs, i64 %chunk, i64 %unit, i64 %num_threads, ptr %end)
  alwaysinline {
entry:
  %first = load atomic i64, ptr %counter monotonic, align 8
  br label %try
try:
  %start = phi i64 [ %first, %entry ], [ %found, %take ]
  %is_any = icmp ult i64 %start, %num_outputs
  br i1 %is_any, label %take, label %exit
take:
  %left = sub i64 %num_outputs, %start
  %part = udiv i64 %left, %num_threads
  %rest = urem i64 %part, %unit
  %whole = sub i64 %part, %rest
  %least = call i64 @llvm.umax.i64(i64 %whole, i64 %unit)
  %count = call i64 @llvm.umin.i64(i64 %least, i64 %chunk)
  %wanted = add i64 %start, %count
  %answer = cmpxchg ptr %counter, i64 %start, i64 %wanted monotonic monotonic
  %found = extractvalue {i64, i1} %answer, 0
  %is_taken = extractvalue {i64, i1} %answer, 1
  br i1 %is_taken, label %exit, label %try
exit:
  %after = phi i64 [ %start, %try ], [ %wanted, %take ]
  %limit = call i64 @llvm.umin.i64(i64 %after, i64 %num_outputs)
  store i64 %limit, ptr %end
  ret i64 %start
}
"""
"""Returns the first of the outputs that a thread claims, and stores the one after the last. The first one is
`%num_outputs` or greater if none are left.

A thread claims its share of what is left, `%chunk` outputs at most and `%unit` at least: many at first, because a long
stretch of weights is read faster, and few in the end, so that no thread waits long for another. Source: guided
self-scheduling (Polychronopoulos and Kuck 1987, IEEE Transactions on Computers C-36).
"""

CLAIM_ARGUMENTS = "ptr %counter, i64 %num_outputs, i64 %chunk, i64 %unit, i64 %num_threads, ptr %end"
"""What `claim` gets; `%end` is memory of 8 bytes."""

CLAIM_LOOP = f"""claim:
  %start = call i64 @claim({CLAIM_ARGUMENTS})
  %limit = load i64, ptr %end
  %is_any = icmp ult i64 %start, %num_outputs
  br i1 %is_any, label %take, label %exit
take:"""
"""Starts the loop of a thread: it claims outputs `%start` to `%limit` in `take`, or goes to `exit` if none are left."""
