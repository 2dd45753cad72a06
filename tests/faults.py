"""The fault catalogue as a table, from the marks of the tests. `python -m tests.faults` writes it.

A test says which faults it holds: `@pytest.mark.fault("F12")`. Nothing is collected or run to make the table.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).parent
TABLE = HERE / "FAULTS.md"

SECTIONS = {
    1: "Input and settings",
    16: "Model files",
    36: "Device, memory, numbers",
    49: "Signals, pipes, disk",
    75: "Text and stream",
}

PROMISES = {
    "F01": ("Prompt and budget beyond the target's window", "exit 2 before weights are read, with the sum"),
    "F02": ("Prompt beyond the draft's smaller window", "the draft stops there, one notice, the text is the target's"),
    "F03": ("Window full in a chat", "refused with the choices; nothing is trimmed"),
    "F04": (
        "Empty prompt, or a template that renders to nothing",
        "exit 2; a raw prompt starts from BOS if there is one",
    ),
    "F05": ("Prompt that is not UTF-8", "exit 2 with byte and offset"),
    "F06": ("NUL, control bytes, long lines, mixed line ends", "reach the tokenizer as they are"),
    "F07": ("Endless stdin", "exit 2 at 16 MiB"),
    "F08": ("No prompt, closed stdin", "exit 2, never a wait"),
    "F09": ("Budget of 0, -1, 10^12 or no integer", "exit 2, or bounded by the window"),
    "F10": ("Sampling settings out of range", "exit 2 naming the range; a tiny temperature is greedy"),
    "F11": ("Nothing left to choose from", "exit 8: all minus infinity is no law"),
    "F12": ("Seed out of range", "exit 2"),
    "F13": ("Unknown option, prompt given twice", "exit 2, and a JSON document where one was asked for"),
    "F14": ("Broken value in the environment", "exit 2 naming the variable; there is no settings file"),
    "F15": ("Markup in prompt or answer", "shown literally"),
    "F16": ("Damaged safetensors", "exit 3 naming the file"),
    "F17": ("Tensors missing", "exit 3 naming them; tied ones are not missing"),
    "F18": ("Tensors left over", "exit 3"),
    "F19": ("NaN or infinity in weights", "exit 8 at load"),
    "F20": ("config.json missing, cut or absurd", "exit 3 in one line"),
    "F21": ("Only a pickle", "exit 3; no code runs"),
    "F22": ("Model that wants remote code", "exit 3; no code runs, stdin is no consent"),
    "F23": ("Config that names a hub kernel", "exit 3; the kernels package can't be imported"),
    "F24": ("GGUF that is none, or cut", "exit 3 with file and reason"),
    "F25": ("GGUF bombs", "refused in under 0.1 s and little memory, exit 3"),
    "F26": ("GGUF with a weight format", "exit 2 before loading"),
    "F27": ("GGUF of an unknown architecture, or without a tokenizer", "exit 3 naming it"),
    "F28": (
        "Tokenizer missing, or of another model",
        "missing or damaged: exit 3; ids the model has no row for: exit 4",
    ),
    "F29": ("Padded vocabulary, same tokenizer", "accepted; no padding row is ever chosen"),
    "F30": ("Same size, different tokenizer", "exit 4 before weights are read, naming ids"),
    "F31": ("Other special tokens of the draft", "the target's are used; a different end is a notice"),
    "F32": ("Path to a FIFO, a dangling link, a file", "exit 3, no wait"),
    "F33": ("File replaced while mapped", "not promised"),
    "F34": ("Chat template without end, huge or broken", "exit 3 after 2 s, within memory and output limits"),
    "F35": ("Template that adds hidden text", "not an error"),
    "F36": ("Weight format without bitsandbytes", "exit 5 with the install line; auto goes on without"),
    "F37": ("bitsandbytes without a usable backend", "exit 5; its chatter is not shown"),
    "F38": ("CUDA asked for and not there", "exit 5; auto takes the CPU and says so"),
    "F39": ("Out of memory while loading", "exit 5, the largest fix first"),
    "F40": (
        "Out of memory while generating",
        "the draft is given up and the step retried once; else exit 5, text kept",
    ),
    "F41": ("Killed for memory", "can't be caught; announced before, by an estimate"),
    "F42": ("NaN or infinity in the target's logits", "text kept, exit 8"),
    "F43": ("NaN or infinity in the draft's law", "the draft is dropped with one notice, the text is the target's"),
    "F44": ("Residual of zero", "the target's law stands in"),
    "F45": ("Device lost", "text kept, exit 1: start again"),
    "F46": ("Draft on another device; layers offloaded", "the same text; nothing moves to the CPU in silence"),
    "F47": ("Draft that is slower than nothing", "said with the reason; -k auto leaves it off"),
    "F48": ("Deadlock in a draft thread", "not applicable"),
    "F49": (
        "SIGINT while loading",
        "exit 130 without a word (a document where one was asked for); nothing half of the built-in model or a "
        "conversion in the cache",
    ),
    "F50": ("SIGINT while generating", "the round is finished, JSON whole, terminal sane, exit 130"),
    "F51": ("SIGINT twice", "ends where it is, terminal sane, exit 130"),
    "F52": ("SIGINT in a chat", "the partial reply is kept; at the prompt the line is cleared"),
    "F53": ("SIGTERM", "as SIGINT, exit 143"),
    "F54": ("SIGHUP, terminal closed", "session saved, exit 129"),
    "F55": ("SIGTSTP and SIGCONT", "terminal restored, view drawn anew, the time counts nowhere"),
    "F56": (
        "Reader leaves early",
        "exit 0, nothing on stderr; no round is made beyond what the pipe held and one more",
    ),
    "F57": ("stdout on a full disk", "exit 7, one line"),
    "F58": ("stdout closed", "exit 7 before anything is loaded"),
    "F59": ("stderr closed or full", "the answer is unaffected"),
    "F60": ("Slow reader", "the run waits for it; memory is flat"),
    "F61": ("ASCII environment", "the answer is UTF-8"),
    "F62": ("Disk full while saving", "old file intact, text shown, exit 7, no litter"),
    "F63": ("Killed while saving", "the old or the new session, never half"),
    "F64": ("Damaged or newer session file", "set aside with a message, never overwritten"),
    "F65": ("State folder that can't be written", "told once and gone on; a session asked for by name: exit 7"),
    "F66": ("Two chats, one session", "the second: exit 2 naming the process"),
    "F67": (
        "Two runs, one cold cache",
        "the built-in model is fetched once and a GGUF converted once, held with two threads on the lock files; "
        "downloads from the hub are left to its client's own locks",
    ),
    "F68": (
        "Download that breaks off",
        "exit 3; what came of it is not taken for the model, and the next run completes it",
    ),
    "F69": (
        "Download damaged",
        "exit 3 where the client says so, held with a client that does; a flipped byte of the right length is found "
        "by nobody, unless it makes NaN or infinity (F19)",
    ),
    "F70": ("No network, or a hub that says nothing", "a cached model asks nobody; else exit 3 within 2 s"),
    "F71": ("Gated, 401, 404, 429, 500", "exit 3, each its own hint; the token is never shown"),
    "F72": (
        "Cache disk full",
        "a conversion: exit 3 with the bytes free and needed, nothing half is left; a download from the hub: exit 3 "
        "with the way to another disk, held with a client that says so, and its part stays to be resumed",
    ),
    "F73": ("Clock jumps", "durations come from a monotonic clock, summed around the work"),
    "F74": ("Narrow, resized or dumb terminal", "no crash, the text is whole"),
    "F75": ("Character split over tokens", "never half a character"),
    "F76": ("Answer that ends inside a character", "one replacement character at the end"),
    "F77": ("End token inside an accepted run", "cut there, counts and caches too"),
    "F78": ("Stop string over rounds", "the text ends before it; held text is not shown early"),
    "F79": ("Special tokens and padding ids in the answer", "not shown; never chosen"),
    "F80": ("Endless repetition", "runs to its budget; Ctrl-C works"),
}

UNTESTED = {
    "F33": "nothing is promised: a mapped file that is replaced raises SIGBUS. Snapshot folders of the hub and our own "
    "cache entries are never changed in place",
    "F35": "there is no command that shows the rendered prompt yet",
    "F48": "nothing runs in a thread: draft and target take turns in one",
}
"""Faults without a test, and why."""


def marked_tests() -> dict[str, list[str]]:
    """Tests by fault, as `tests/...::name`, read off their source."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(HERE.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                for fault in (fault for decorator in node.decorator_list for fault in _faults(decorator)):
                    found[fault].append(f"{path.relative_to(HERE)}::{node.name}")
    return found


def _faults(decorator: ast.expr) -> list[str]:
    is_mark = isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault"
    return [ast.literal_eval(word) for word in decorator.args] if is_mark else []  # type: ignore[attr-defined]


def table() -> str:
    """The whole of FAULTS.md."""
    tests = marked_tests()
    lines = [
        "# Faults, promises, tests",
        "",
        "Made by `python -m tests.faults` from the marks of the tests; a test fails where it is out of date.",
        f"{len(PROMISES) - len(UNTESTED)} of {len(PROMISES)} faults are held by a test.",
    ]
    for number, (fault, (what, promise)) in enumerate(PROMISES.items(), 1):
        if number in SECTIONS:
            lines += ["", f"## {SECTIONS[number]}", "", "| fault | what | promise | tests |", "|---|---|---|---|"]
        held = "<br>".join(f"`{name}`" for name in tests[fault]) or f"none: {UNTESTED[fault]}"
        lines.append(f"| {fault} | {what} | {promise} | {held} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
