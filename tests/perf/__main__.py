"""Peers in one run: our plain loop, our speculation, and transformers' own generation, interleaved on the same weights.

    python -m tests.perf -t TARGET -d DRAFT [-d DRAFT2:nf4] -k 2,4 [--prompts FILE] [-n 64] [-r 1] [--json OUT]

Every mode runs every prompt before the next prompt begins, the order turning from prompt to prompt; lengths are equal
(end tokens ignored); decoding only, prefill left out on both sides. Ratios are of sums; the interval is a 95 % t
interval on the log ratios of the prompts, paired. Not part of the test run: alone on the machine, or it says nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from scipy import stats

from specgen.engine.contract import LanguageModel
from specgen.engine.costs import CostTable, DraftCost
from specgen.engine.decoding import decode, device_clock
from specgen.engine.drafters import ModelDrafter, NoDrafter
from specgen.engine.lengths import CostAwareLength, FixedLength
from specgen.engine.lookup import LookupDrafter
from specgen.engine.model import CachedModel
from specgen.engine.randomness import TorchRandomness
from specgen.events import Finish, Prefill
from specgen.loading.libraries import prepare_libraries
from specgen.loading.pairs import table_size
from specgen.loading.tokenizer import load_tokenizer
from specgen.loading.weights import load_model
from specgen.metrics import Counts
from specgen.opening import own_cache
from specgen.prompting import Message, encode_messages
from specgen.settings import LONGEST_AUTO_DRAFT, DecodeSettings, ModelSettings, SamplingSettings

BUNDLED = [
    {"id": "code", "prompt": "Write a Python function that checks whether a string is a palindrome."},
    {"id": "chat", "prompt": "What should I consider before adopting a dog?"},
    {"id": "edit", "prompt": "Fix the grammar and return the sentence only: She go to school every days by bus."},
]
GREEDY = SamplingSettings()


@dataclass
class Run:
    """One prompt in one mode."""

    mode: str
    prompt: str
    ids: list[int]
    decode_seconds: float
    num_tokens: int
    counts: Counts | None = None
    overhead_seconds: float = 0.0
    """Decoding time outside the models' forwards."""


@dataclass
class Mode:
    name: str
    run: Callable[[list[int]], Run]
    runs: list[Run] = field(default_factory=list)


def ours(
    name: str,
    target: LanguageModel,
    draft: LanguageModel | str | None,
    k: str,
    num_tokens: int,
    draft_window: int | None = None,
) -> Mode:
    """Our loop; `draft` is a model, "lookup" or None. With k "auto" what is learned is kept, as in a session."""
    randomness = TorchRandomness(0, target.device)
    lengths = CostAwareLength(CostTable(), DraftCost()) if k == "auto" else FixedLength()
    settings = DecodeSettings(num_tokens, LONGEST_AUTO_DRAFT if k == "auto" else int(k))

    def run(prompt: list[int]) -> Run:
        drafter: Any = NoDrafter() if draft is None else LookupDrafter()
        models = [target]
        if draft is not None and not isinstance(draft, str):
            drafter = ModelDrafter(draft, target.vocab_size, GREEDY, randomness, draft_window)
            models.append(draft)
        for model in models:
            _keep_prompt(model, prompt)
        counts, ids, forwards = Counts(), [], 0.0
        clock = device_clock(*(model.device for model in models))
        for event in decode(target, drafter, prompt, settings, GREEDY, randomness, lengths=lengths, clock=clock):
            if isinstance(event, Prefill):
                counts.observe_prefill(event)
                forwards = sum(model.forward_seconds for model in models)
            elif not isinstance(event, Finish):
                counts.observe(event)
                ids += event.token_ids
        inside = sum(model.forward_seconds for model in models) - forwards
        return Run(name, "", ids, counts.decode_seconds, len(ids), counts, counts.decode_seconds - inside)

    return Mode(name, run)


PROMPT_OF: dict[int, list[int]] = {}


def _keep_prompt(model: LanguageModel, prompt: list[int]) -> None:
    """Prefill is no part of the figures, so modes that run the same prompt in turn share it."""
    if PROMPT_OF.get(id(model)) == prompt:
        model.rewind(min(model.length, len(prompt) - 1))
    else:
        model.reset()
        PROMPT_OF[id(model)] = prompt


class StepTimes:
    """A stopping criterion that never stops: notes when each step of `generate` ended, and with how many tokens."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        self.steps.append((perf_counter(), input_ids.shape[1]))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def theirs(name: str, model: Any, num_tokens: int, **options: Any) -> Mode:
    """transformers' generate, greedy. Its first step holds the prefill; the rate is taken over the others."""

    def run(prompt: list[int]) -> Run:
        times = StepTimes()
        output = model.generate(
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64, device=model.device),
            do_sample=False,
            repetition_penalty=1.0,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=[times],
            **options,
        )
        (first_at, first), (last_at, last) = times.steps[0], times.steps[-1]
        if first == last:
            raise SystemExit(f"{name}: {num_tokens} tokens came in one step; ask for more with -n")
        ids = output[0, len(prompt) :].tolist()
        return Run(name, "", ids, last_at - first_at, last - first)

    return Mode(name, run)


def ratio_with_interval(baseline: Mode, mode: Mode) -> tuple[float, float, float]:
    """Speedup of `mode` over `baseline` as a ratio of sums, and the 95 % t interval on paired log ratios."""

    def tpot(runs: Sequence[Run]) -> float:
        return sum(run.decode_seconds for run in runs) / sum(run.num_tokens for run in runs)

    logs = [math.log(tpot([a]) / tpot([b])) for a, b in zip(baseline.runs, mode.runs, strict=True)]
    mean, half = sum(logs) / len(logs), math.inf
    if len(logs) > 1:
        half = float(stats.t.ppf(0.975, len(logs) - 1)) * float(stats.sem(logs))
    return tpot(baseline.runs) / tpot(mode.runs), math.exp(mean - half), math.exp(mean + half)


def load(name: str, dtype: str, role: Any) -> Any:
    """A model by `folder` or `folder:quant`."""
    folder, _, quant = name.partition(":")
    settings = ModelSettings(folder, quant=quant or "none", dtype=dtype)  # type: ignore[arg-type]
    return load_model(Path(folder), settings, role=role, from_gguf=False)


def prompts_from(path: str | None) -> list[dict[str, str]]:
    if path is None:
        return BUNDLED
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def build_modes(arguments: argparse.Namespace, loaded: Any, target: CachedModel) -> list[Mode]:
    n, lengths = arguments.n, arguments.k.split(",")
    modes = [ours("plain", target, None, "0", n)]
    drafts = {name: load(name, arguments.dtype, "draft") for name in arguments.draft}
    shared = {}
    for name, draft in drafts.items():
        label = f"{Path(name).name}" if ":" in name else f"{Path(name).name}:{arguments.dtype}"
        shared[label] = draft
        cached = own_cache(draft, target.vocab_size, "draft")
        modes += [ours(f"spec {label} k={k}", target, cached, k, n) for k in lengths]
    if arguments.lookup:
        modes += [ours(f"lookup k={k}", target, "lookup", k, n) for k in lengths]
    if arguments.peers:
        modes.append(ours("plain, transformers' forward", CachedModel(loaded.model, target.vocab_size), None, "0", n))
        modes.append(theirs("transformers plain", loaded.model, n))
        modes += [
            theirs(f"transformers assisted {label}", loaded.model, n, assistant_model=draft.model)
            for label, draft in shared.items()
        ]
        if arguments.lookup:
            modes.append(theirs("transformers lookup", loaded.model, n, prompt_lookup_num_tokens=10))
    return modes


def table(modes: Sequence[Mode]) -> str:
    lines = [f"{'mode':<46}{'tok/s':>8}{'ms/tok':>9}  {'speedup [95 %]':<24}{'TAR':>7}{'α':>7}{'tok/rnd':>9}  outside"]
    for mode in modes:
        seconds = sum(run.decode_seconds for run in mode.runs)
        tokens = sum(run.num_tokens for run in mode.runs)
        ratio, low, high = ratio_with_interval(modes[0], mode)
        figures = ""
        if mode.runs[0].counts is not None:
            counts = [run.counts for run in mode.runs if run.counts is not None]
            drafted, accepted = sum(c.num_drafted for c in counts), sum(c.num_accepted for c in counts)
            tested, rounds = sum(c.num_tested for c in counts), sum(c.num_rounds for c in counts)
            overhead = sum(run.overhead_seconds for run in mode.runs)
            tar = f"{accepted / drafted:7.1%}{accepted / tested:7.1%}" if drafted else f"{'n/a':>7}{'n/a':>7}"
            figures = f"{tar}{tokens / rounds:9.2f}{1000 * overhead / rounds:8.2f} ms ({overhead / seconds:.1%})"
        same = sum(run.ids == plain.ids for run, plain in zip(mode.runs, modes[0].runs, strict=True))
        spread = f"{ratio:.3f} [{low:.3f}, {high:.3f}]"
        head = f"{mode.name:<46}{tokens / seconds:8.2f}{1000 * seconds / tokens:9.1f}  {spread:<24}"
        lines.append(f"{head}{figures}  same text {same}/{len(mode.runs)}")
    return "\n".join(lines)


def by_category(modes: Sequence[Mode], categories: dict[str, str]) -> str:
    """Speedup of each mode over the first one, by category of prompt."""
    names = list(dict.fromkeys(categories.values()))
    lines = [" " * 46 + "".join(f"{name[:9]:>10}" for name in names)]
    for mode in modes[1:]:
        cells = []
        for name in names:
            pairs = [
                (plain, run)
                for plain, run in zip(modes[0].runs, mode.runs, strict=True)
                if categories[run.prompt] == name
            ]
            baseline = sum(plain.decode_seconds / plain.num_tokens for plain, _ in pairs)
            cells.append(f"{baseline / sum(run.decode_seconds / run.num_tokens for _, run in pairs):10.2f}")
        lines.append(f"{mode.name:<46}{''.join(cells)}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--target", required=True)
    parser.add_argument("-d", "--draft", action="append", default=[], help="folder, or folder:nf4")
    parser.add_argument("-k", default="4", help="draft lengths, as in 2,4,auto")
    parser.add_argument("-n", type=int, default=64, help="new tokens")
    parser.add_argument("-r", type=int, default=1, help="repeats")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", help="JSONL with id and prompt")
    parser.add_argument("--limit", type=int, help="only the first so many prompts")
    parser.add_argument("--one-per-category", action="store_true", help="only the first prompt of each category")
    parser.add_argument("--lookup", action="store_true", help="prompt lookup as well")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="leave transformers' generate out")
    parser.add_argument("--json", help="write all runs to this file")
    arguments = parser.parse_args()
    prepare_libraries(False)
    loaded = load(arguments.target, arguments.dtype, "target")
    tokenizer = load_tokenizer(Path(arguments.target.partition(":")[0]))
    modes = build_modes(arguments, loaded, own_cache(loaded, table_size(tokenizer), "target"))
    prompts = prompts_from(arguments.prompts)[: arguments.limit]
    if arguments.one_per_category:
        prompts = list({p.get("category", p["id"]): p for p in reversed(prompts)}.values())[::-1]
    encoded = [(p["id"], encode_messages(tokenizer, [Message("user", p["prompt"])])) for p in prompts]
    for mode in modes:
        mode.run(encoded[0][1])
    for turn, (name, ids) in enumerate(encoded * arguments.r):
        order = modes[turn % len(modes) :] + modes[: turn % len(modes)]
        for mode in order:
            run = mode.run(ids)
            run.prompt = name
            mode.runs.append(run)
        print(f"{turn + 1}/{len(encoded) * arguments.r} {name}", file=sys.stderr, flush=True)
        write(arguments, loaded, modes)
    print(f"{loaded.info.name} {loaded.info.quant} {loaded.info.dtype}, {arguments.n} tokens, {len(encoded)} prompts")
    print(table(modes))
    print(by_category(modes, {p["id"]: p.get("category", p["id"]) for p in prompts}))


def write(arguments: argparse.Namespace, loaded: Any, modes: Sequence[Mode]) -> None:
    """Save after every prompt, so that a crash loses nothing."""
    if arguments.json:
        environment = {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
        runs = [asdict(run) for mode in modes for run in mode.runs]
        document = {
            "environment": environment,
            "target": asdict(loaded.info),
            "arguments": vars(arguments),
            "runs": runs,
        }
        Path(arguments.json).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
