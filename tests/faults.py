"""Lists the faults that specgen handles, and writes the table of them and their tests: `python -m tests.faults`.

A test names the faults that it covers: `@pytest.mark.fault("F12")`. The table is made from the source of the tests.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from pathlib import Path

from tests.structure import nodes_of

HERE = Path(__file__).parent
TABLE = HERE / "FAULTS.md"

SECTIONS = {
    1: "Input and settings",
    16: "Model files",
    36: "Device, memory, numbers",
    49: "Signals, pipes, disk",
    75: "Text and stream",
    91: "Where a text ends, and what the checkpoint asks for",
    100: "Tokens: the checkpoint's own tokenizer decides",
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
    "F11": ("Nothing left to choose from", "exit 8: all minus infinity is not a distribution"),
    "F12": ("Seed out of range", "exit 2"),
    "F13": ("Unknown option, prompt given twice", "exit 2, and a JSON document for --json"),
    "F14": ("Broken value in the environment", "exit 2 naming the variable; there is no settings file"),
    "F15": ("Markup in prompt or answer", "shown literally"),
    "F16": ("Damaged safetensors", "exit 3 naming the file"),
    "F17": ("Tensors missing", "exit 3 naming them; tied ones are not missing"),
    "F18": ("Layers or parts of layers left over", "exit 3"),
    "F19": ("NaN or infinity in weights", "exit 8 at load"),
    "F20": ("config.json missing, cut or absurd", "exit 3 in one line"),
    "F21": ("Only a pickle", "exit 3; no code runs"),
    "F22": ("Model that wants remote code", "exit 3; no code runs, stdin is not consent"),
    "F23": ("Config that names a hub kernel", "exit 3; the kernels package can't be imported"),
    "F24": ("File that is not a GGUF, or a truncated one", "exit 3 with file and reason"),
    "F25": ("GGUF bombs", "refused in under 0.1 s and little memory, exit 3"),
    "F26": ("GGUF with a weight format", "exit 2 before loading"),
    "F27": ("GGUF of an unknown architecture, or without a tokenizer", "exit 3 naming it"),
    "F28": (
        "Tokenizer missing, or of another model",
        "missing or damaged: exit 3; ids the model has no row for: exit 4",
    ),
    "F29": ("Padded vocabulary, same tokenizer", "accepted; no padding row is ever chosen"),
    "F30": ("Same size, different tokenizer", "drafts are translated; with --draft-vocab same exit 4, naming ids"),
    "F31": ("Other special tokens of the draft", "the target's are used; a different end is a notice"),
    "F32": ("Path to a FIFO, a dangling link, a file", "exit 3, no wait"),
    "F33": ("File replaced while mapped", "not promised"),
    "F34": ("Chat template without end, huge or broken", "exit 3 after 2 s, within memory and output limits"),
    "F35": ("Template that adds hidden text", "not an error"),
    "F36": ("Weight format without bitsandbytes", "exit 5 with the install line; auto goes on without"),
    "F37": ("bitsandbytes without a usable backend", "exit 5; its messages are not shown"),
    "F38": ("CUDA requested but not available", "exit 5; auto uses the CPU and reports it"),
    "F39": ("Out of memory while loading", "exit 5, the largest fix first"),
    "F40": (
        "Out of memory while generating",
        "the draft is released and the step is tried once more; else exit 5, text kept",
    ),
    "F41": ("Killed for memory", "can't be caught; announced before, by an estimate"),
    "F42": ("NaN or infinity in the target's logits", "text kept, exit 8"),
    "F43": (
        "NaN or infinity in the draft's distribution",
        "the draft is dropped with one notice, the text is the target's",
    ),
    "F44": ("Residual of zero", "the target's distribution is used"),
    "F45": ("Device lost", "text kept, exit 1: start again"),
    "F46": ("Draft on another device; layers offloaded", "the same text; nothing moves to the CPU silently"),
    "F47": ("Draft that is slower than nothing", "reported with the reason; -k auto leaves it off"),
    "F48": ("Deadlock in a draft thread", "not applicable"),
    "F49": (
        "SIGINT while loading",
        "exit 130 silently (with a document for --json); no partial built-in model or conversion in the cache",
    ),
    "F50": ("SIGINT while generating", "the round is finished, JSON whole, terminal sane, exit 130"),
    "F51": ("SIGINT twice", "ends where it is, terminal sane, exit 130"),
    "F52": ("SIGINT in a chat", "the partial reply is kept; at the prompt the line is cleared"),
    "F53": ("SIGTERM", "as SIGINT, exit 143"),
    "F54": ("SIGHUP, terminal closed", "session saved, exit 129"),
    "F55": ("SIGTSTP and SIGCONT", "terminal restored, view drawn again, the time is in no figure"),
    "F56": (
        "Reader leaves early",
        "exit 0, nothing on stderr; no round is made beyond what the pipe held and one more",
    ),
    "F57": ("stdout on a full disk", "exit 7, one line"),
    "F58": ("stdout closed", "exit 7 before anything is loaded"),
    "F59": ("stderr closed or full", "the answer is unaffected"),
    "F60": ("Slow reader", "the run waits for it; memory is flat"),
    "F61": ("ASCII environment", "the answer is UTF-8"),
    "F62": ("Disk full while saving", "old file intact, text shown, exit 7, no temporary file"),
    "F63": ("Killed while saving", "the old or the new session, never a part"),
    "F64": ("Damaged or newer session file", "set aside with a message, never overwritten"),
    "F65": (
        "State folder that can't be written",
        "reported once; a session requested by name: exit 7",
    ),
    "F66": ("Two chats, one session", "the second: exit 2 naming the process"),
    "F67": (
        "Two runs, one cold cache",
        "the built-in model is fetched once and a GGUF converted once, tested with two threads on the lock files; "
        "downloads from the hub are left to its client's own locks",
    ),
    "F68": (
        "Download that breaks off",
        "exit 3; the partial file is not used as the model, and the next run completes it",
    ),
    "F69": (
        "Download damaged",
        "exit 3 where the client reports it, tested with a client that does; a flipped byte is not found unless it "
        "makes NaN or infinity (F19)",
    ),
    "F70": (
        "No network, or a hub that does not answer",
        "a cached model contacts no server; else exit 3 within 2 s, or 10 s if the hub accepts a connection",
    ),
    "F71": ("Gated, 401, 404, 429, 500", "exit 3, each its own hint; the token is never shown"),
    "F72": (
        "Cache disk full",
        "a conversion: exit 3 with the bytes free and needed, no partial file is left; a download from the hub: exit 3 "
        "with the way to another disk, tested with a client that raises it; the partial file stays and is resumed",
    ),
    "F73": ("Clock jumps", "durations come from a monotonic clock, summed around the work"),
    "F74": ("Narrow, resized or dumb terminal", "no crash, the text is whole"),
    "F75": ("Character split over tokens", "never half a character"),
    "F76": ("Answer that ends inside a character", "one replacement character at the end"),
    "F77": ("End token inside an accepted run", "cut there, counts and caches too"),
    "F78": ("Stop string over rounds", "the text ends before it; text that may belong to it is not shown early"),
    "F79": ("Special tokens and padding ids in the answer", "not shown; never chosen"),
    "F80": ("Endless repetition", "runs to its budget; Ctrl-C works"),
    "F91": (
        "Special token as a stop string (vllm-project/vllm#2123)",
        "the text ends before it, whether the model writes the token or its letters",
    ),
    "F92": (
        "GGUF whose end of a turn is known only by its text (ollama/ollama#3759)",
        "tokens that spell an end of turn end the text, as in llama.cpp",
    ),
    "F93": (
        "Id of a missing special token, -1 or 2^32 - 1 (EricLBuehler/mistral.rs#2282, ggml-org/llama.cpp#2981)",
        "as if the key were not there, on every backend",
    ),
    "F94": (
        "Reasoning between special tokens (vllm-project/vllm#38858)",
        "found by the tokens, kept apart from the answer, and not fed back; harmony's channels, too",
    ),
    "F95": (
        "Value in generation_config.json that can't be used (huggingface/transformers#25388, ml-explore/mlx-lm#708)",
        "off, with a notice; an option overrides it",
    ),
    "F96": (
        "Rules in generation_config.json (microsoft/onnxruntime-genai#2201)",
        "stop strings and forbidden tokens as in generate, with any draft; other rules are named in one notice",
    ),
    "F97": (
        "System message, and a template without a system role (sgl-project/sglang#1342)",
        "prepended to the next user message, with a notice: in generate, bench, chat and the library",
    ),
    "F98": (
        "Variables of the chat template in measurements (EleutherAI/lm-evaluation-harness#3088)",
        "the option is there in bench, verify and distill, and in what they export",
    ),
    "F99": (
        "Chat template only in the files of a processor (ggml-org/llama.cpp#12460)",
        "chat_template.json and processor_config.json are read, with any tokenizer",
    ),
    "F100": (
        "Draft whose reserved tokens have other names (ggml-org/llama.cpp#3812)",
        "a few added tokens that differ are never drafted, with a notice; the text is the target's",
    ),
}

REPORTED = {
    "F101": (
        "Added token beyond the model's embeddings",
        "dropped with a notice; its string is text. More, or an end of text: exit 4",
        "OpenNMT/CTranslate2#1618",
    ),
    "F102": (
        "Added tokens that are text: line ends, runs of spaces, HTML",
        "the ids of apply_chat_template; only control tokens are kept out of messages",
        "",
    ),
    "F103": ("Raw prompt that begins with the begin token", "one begin token", "abetlen/llama-cpp-python#1501"),
    "F104": (
        "GGUF of an architecture that transformers does not convert, with an ordinary table",
        "its tokenizer is built from the table, as in llama.cpp",
        "",
    ),
    "F105": ("Tokenizer without a counterpart in Rust", "exit 3 naming its class, in every command", ""),
    "F106": (
        "GGUF whose pre-tokenizer transformers ignores (digits of SmolLM2)",
        "one set of ids on every backend: llama.cpp's",
        "",
    ),
    "F107": ("GGUF next to the tokenizer files of another model", "the GGUF alone decides, on every backend", ""),
    "F108": (
        "Folder whose tokenizer_class rebuilds the tokenizer otherwise than tokenizer.json",
        "the ids of tokenizer.json, whatever the class",
        "",
    ),
    "F109": (
        "Special tokens in an answer: tool calls, marks of code",
        "shown with --show-special-tokens; the ids are in every JSON form",
        "vllm-project/vllm#893",
    ),
    "F110": (
        "Tokenizer file of Mistral's with the split of Llama 3",
        "mended with a notice; another split than Mistral's is a notice",
        "huggingface/transformers#42131",
    ),
    "F111": ("Prompt file of distill with system messages or whole conversations", "all messages are kept", ""),
    "F121": (
        "Prompt files with other line ends: U+2028, U+0085, form feeds",
        "a line ends at \\n; the whole file may also be one JSON array",
        "wbolster/jsonlines#53",
    ),
    "F122": (
        "Prompt in UTF-16, as PowerShell writes it",
        "read with its mark; without one exit 2, naming UTF-16",
        "ollama/ollama#14475",
    ),
    "F123": (
        "Template variables that specgen sets itself; SPECGEN_SYSTEM with a raw prompt",
        "exit 2 naming the variable; a default from the environment has no effect where it can't apply",
        "",
    ),
    "F124": (
        "Memory and CPU limits on an outer group, in version 1 or in a container's own part of the tree",
        "the smallest limit on the way up is used; threads are limited to the CPU time",
        "sgl-project/sglang#35707",
    ),
    "F125": (
        "File systems that can't sync a folder (CIFS, 9p, VirtualBox, virtiofs), or have no locks",
        "a finished conversion is kept; EIO is still an error",
        "borgbackup/borg#1287",
    ),
    "F126": (
        "No HOME and no entry in the user database, as in containers with any user id",
        "a local folder runs without a cache, no folder named `~` is made; else exit 3 naming the variables",
        "sclorg/mysql-container#32",
    ),
    "F127": (
        "GGUF under another name, as in Ollama's store; other content under a model's name",
        "a GGUF is recognized by its first bytes; anything else is called what it is",
        "ollama/ollama#1395",
    ),
    "F128": (
        "GGUF split over several files",
        "llama.cpp opens the first part; a later or missing one is named, and where the program is that joins them",
        "abetlen/llama-cpp-python#1341",
    ),
    "F129": (
        "GGUF types that llama.cpp removed, or of another program",
        "exit 3 naming the type and what to use; never called corrupt",
        "abetlen/llama-cpp-python#1860",
    ),
    "F130": (
        "Models for images, speech or translation",
        "exit 3 naming what they are for, and the text model inside",
        "UKGovernmentBEIS/inspect_ai#4438",
    ),
    "F131": (
        "Hub behind a slow network or a mirror that fetches first",
        "once a connection stands, the client's own limit counts",
        "huggingface/huggingface_hub#3594",
    ),
    "F132": (
        "ALL_PROXY alone, SOCKS proxies",
        "honoured; exit 3 naming the package that a SOCKS proxy needs",
        "OpenHands/OpenHands-CLI#632",
    ),
    "F133": (
        "Certificate of a proxy that signs connections",
        "exit 3 naming the certificate and SSL_CERT_FILE",
        "huggingface/huggingface_hub#3440",
    ),
    "F134": (
        "Hub cache that can't be written",
        "a cached model runs; else exit 3 naming the folder and HF_HOME",
        "huggingface/huggingface_hub#2797",
    ),
    "F135": (
        "Hub repository with pickles or GGUF files only",
        "exit 3 with the reason; its GGUF files are listed with the command that downloads one",
        "vllm-project/vllm#20793",
    ),
    "F136": (
        "Hub names as people paste them: addresses, revisions, quantizations, files; HF_ENDPOINT without a scheme",
        "understood; a GGUF file is named with the command that downloads it",
        "vllm-project/vllm#29137",
    ),
    "F137": (
        "Several lines pasted by a terminal without bracketed paste",
        "one message; commands stay apart",
        "simonw/llm#267",
    ),
    "F138": ("Input line that wraps", "looks otherwise than a new line", ""),
    "F139": ("Draft that is the target itself, or larger than it", "one notice with its size", ""),
    "F140": (
        "LongRoPE (Phi-3, Phi-4, Phi-MoE): other rotary frequencies above a length",
        "the text is `generate`'s on both sides and across, with any draft and any chunk",
        "microsoft/onnxruntime-genai#1161",
    ),
    "F141": (
        "Scaled rotary embedding of a GGUF: rope_freqs, linear, YaRN",
        "carried over to the converted model; what transformers would drop silently is refused: exit 3",
        "floneum/kalosm#340",
    ),
    "F142": (
        "Context window of a model with YaRN, linear or dynamic scaling",
        "the scaled window",
        "ggml-org/llama.cpp#17459",
    ),
    "F143": ("Sizes that differ by layer (Gemma 3n)", "runs; the text is `generate`'s", ""),
    "F144": (
        "Tensors next to a model: heads of rewards and of further tokens, encoders of images",
        "left out with one notice if nothing is missing; layers left over by number stay exit 3",
        "NVIDIA/TensorRT-LLM#17378",
    ),
    "F145": (
        "Every decoder architecture of transformers, as a tiny random model",
        "the text is `generate`'s with any draft; what can't run is refused with the reason",
        "",
    ),
    "F146": (
        "Weights outside linear layers: fused experts, Conv1D",
        "memory is counted by the modules that run, and the share of the weights in the format is shown",
        "",
    ),
    "F147": (
        "Quantized checkpoints of MLX, and of methods that a CPU can't compute with (fp8)",
        "MLX is named: exit 3; unpacked weights are counted as they run, and shown",
        "",
    ),
    "F148": ("Forward pass with another name for its cache", "the name is taken from its signature", ""),
    "F156": (
        "Character of several code points whose tokens differ in state",
        "its style changes at its end",
        "",
    ),
    "F157": (
        "GGUF with one odd entry: a size, type, id, string or alignment at its edges",
        "exit 2, 3, 4, 5 or 8 naming it, or the text of llama.cpp; the process never ends in a signal",
        "",
    ),
    "F158": ("GGUF with the id of a special token beyond its table", "ignored with a notice, on every backend", ""),
    "F159": (
        "Chat template that reads contents as lists of parts, as those of models for images and text do",
        "the text is rendered; it was dropped silently",
        "vllm-project/vllm#9358",
    ),
    "F160": ("Chat template that is a Git LFS pointer or a web page", "exit 3 naming it; never rendered", ""),
    "F161": ("Safetensors whose header has a length that begins as a pickle does", "runs", ""),
    "F162": (
        "Several named chat templates, as a list or an object",
        "the one named default; without one, exit 2 with the names",
        "ggml-org/llama.cpp#6484",
    ),
    "F163": (
        "tokenizer.json with a byte order mark, or of a newer version of the package",
        "read as the model's other files are; exit 3 naming the package",
        "",
    ),
    "F164": (
        "Weights under the names of a wrapper, in a file with another name, without their index, or in a hub cache",
        "exit 3 naming the prefix, the file or the folder",
        "Blaizzy/mlx-vlm#1827",
    ),
    "F165": ("Prompt file with JSON nested too deeply", "exit 2 with its line", ""),
    "F166": (
        "Address of the hub or a proxy, a time limit of its client, or a setting of torch's log, that can't be read",
        "exit 2 naming the variable; an empty one is as unset",
        "",
    ),
    "F167": ("Working folder that was removed", "exit 2, before a library ends the process", ""),
    "F168": ("Documents, images and tables as prompt files", "exit 2 naming what they are", ""),
    "F169": (
        "Hub cache that was copied: no branch, or one with a line end",
        "exit 3 naming the commit that is there",
        "huggingface/huggingface_hub#4492",
    ),
    "F170": (
        "Dynamic NTK scaling beyond the model's own window",
        "the text is `generate`'s; drafting ends there with one notice, because each token has its own frequencies",
        "huggingface/transformers#25104",
    ),
    "F171": (
        "Hub snapshot without a tokenizer, or without files that the model does not need, as other programs leave it",
        "completed; offline it runs if it can",
        "",
    ),
    "F174": (
        "Standard streams that don't block, as Node's and ssh's",
        "nothing is lost, and a prompt that comes late is read",
        "",
    ),
    "F173": (
        "GGUF that holds no model that writes: encoder of images, adapter, importance matrix, embeddings",
        "exit 3 naming what it is, on every backend; never called damaged",
        "ggml-org/llama.cpp#7799",
    ),
    "F172": (
        "JSON files with a byte order mark or in UTF-16, and a safetensors index without metadata",
        "read on every backend",
        "",
    ),
}
"""Faults from public reports about tools of this kind: what, promise, and where it was reported."""

UNTESTED = {
    "F33": "nothing is promised: a mapped file that is replaced raises SIGBUS. Snapshot folders of the hub and our own "
    "cache entries are never changed in place",
    "F35": "there is no command that shows the rendered prompt yet",
    "F48": "nothing runs in a thread: draft and target take turns in one",
}
"""Faults without a test, and why."""


@cache
def marked_tests() -> dict[str, list[str]]:
    """Returns the tests of each fault, as `tests/...::name`."""
    found: dict[str, list[str]] = defaultdict(list)
    marked = (path for path in sorted(HERE.rglob("test_*.py")) if "mark.fault(" in path.read_text(encoding="utf-8"))
    for path in marked:
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef):
                for fault in (fault for decorator in node.decorator_list for fault in _faults(decorator)):
                    found[fault].append(f"{path.relative_to(HERE)}::{node.name}")
    return found


def _faults(decorator: ast.expr) -> list[str]:
    is_mark = isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault"
    return [ast.literal_eval(word) for word in decorator.args] if is_mark else []  # type: ignore[attr-defined]


def table() -> str:
    """Returns the text of FAULTS.md."""
    tests = marked_tests()
    lines = [
        "# Faults, promises, tests",
        "",
        "Made by `python -m tests.faults` from the marks of the tests; a test fails where it is out of date.",
        f"{len(PROMISES) - len(UNTESTED)} of {len(PROMISES)} faults are covered by a test.",
    ]
    for fault, (what, promise) in PROMISES.items():
        if (number := int(fault[1:])) in SECTIONS:
            lines += ["", f"## {SECTIONS[number]}", "", "| fault | what | promise | tests |", "|---|---|---|---|"]
        covered = "<br>".join(f"`{name}`" for name in tests[fault]) or f"no test: {UNTESTED[fault]}"
        lines.append(f"| {fault} | {what} | {promise} | {covered} |")
    lines += ["", "## From public reports", ""]
    lines += ["| fault | what | promise | reported | tests |", "|---|---|---|---|---|"]
    for fault, (what, promise, reference) in sorted(REPORTED.items(), key=lambda item: int(item[0][1:])):
        covered = "<br>".join(f"`{name}`" for name in tests[fault])
        lines.append(f"| {fault} | {what} | {promise} | {reference or 'found here'} | {covered} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
