"""Compares llama-cpp-python's own generation and lookup with our loop on the same GGUF file, interleaved.

    python -m tests.perf.llamacpp -t TARGET.gguf [-d DRAFT.gguf] --prompts PROMPTS.jsonl -n 128 [--json OUT]

File, ids, threads, context, flash attention and greedy rule are the same on both sides. Every mode runs a prompt before
the next prompt starts, in a rotating order. Only decoding is timed: from first to last token for llama-cpp-python, the
rounds for ours. The costs that `-k auto` learns are kept from prompt to prompt. Ratios are of sums of seconds per
token; the interval is a 95 % t interval on the paired log ratios of the prompts. Texts are compared with
llama-cpp-python's plain text; where they differ, the gap is the distance of the two tokens' logits in the target.
Run it while the machine is otherwise idle: two threads on two cores wait for each other, so any other process stalls a
pass. The median of the steps shows how much of a difference is due to such stalls.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from specgen.core.settings import BackendSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.engine.near_ties import logit_gap
from specgen.loading.libraries import prepare_libraries
from specgen.loading.llama_cpp import default_num_threads
from specgen.models.llama_cpp import PREFILL_CHUNK, LlamaCppModel
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import ChatTemplate, Message
from tests.perf.__main__ import prompts_from
from tests.perf.modes import PROMPT_OF, Mode, Run, ours, ratio_with_interval

GREEDY = SamplingSettings()


def theirs(name: str, llama: Any, num_tokens: int, num_lookup: int | None = None) -> Mode:
    """Returns llama-cpp-python's own greedy `generate`, with its prompt lookup of `num_lookup` tokens if given."""

    def run(prompt: list[int]) -> Run:
        if num_lookup is not None:
            from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

            llama.draft_model = LlamaPromptLookupDecoding(num_pred_tokens=num_lookup)
        ids: list[int] = []
        times: list[float] = []
        generator = llama.generate(prompt, temp=0.0, repeat_penalty=1.0, top_k=1)
        for token in generator:
            times.append(perf_counter())
            ids.append(int(token))
            if len(ids) == num_tokens:
                break
        generator.close()
        steps = [later - earlier for earlier, later in pairwise(times)]
        return Run(name, "", ids, times[-1] - times[0], len(ids) - 1, step_seconds=steps)

    return Mode(name, run)


def peer(path: str, threads: int, context: int, *, speculates: bool) -> Any:
    """Makes a `Llama` with our settings. With a draft model, `Llama` keeps the logits of all positions."""
    from llama_cpp import Llama
    from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

    return Llama(
        path,
        n_ctx=context,
        n_batch=PREFILL_CHUNK,
        n_ubatch=PREFILL_CHUNK,
        n_threads=threads,
        n_threads_batch=threads,
        flash_attn=True,
        draft_model=LlamaPromptLookupDecoding() if speculates else None,
        # Otherwise its array of logits has n_batch rows only, and a longer text fails.
        logits_all=speculates,
        verbose=False,
    )


def build_modes(arguments: argparse.Namespace, models: LoadedModels, threads: int) -> list[Mode]:
    n, context = arguments.n, arguments.context
    plain = peer(arguments.target, threads, context, speculates=False)
    modes = [theirs("llama-cpp-python plain", plain, n)]
    if arguments.lookup:
        speculating = peer(arguments.target, threads, context, speculates=True)
        lengths = arguments.lookup.split(",")
        modes += [theirs(f"llama-cpp-python lookup {length}", speculating, n, int(length)) for length in lengths]
    modes.append(ours("ours plain", models.target, None, "0", n))
    if not arguments.k:
        return modes
    modes += [ours(f"ours lookup -k {k}", models.target, "lookup", k, n) for k in arguments.k.split(",")]
    draft = models.draft
    if isinstance(draft, LlamaCppModel):
        modes += [
            ours(name, models.target, draft, k, n, draft.context_size, has_lookup=bool(lookup))
            for k in arguments.k.split(",")
            for lookup in ("", "+lookup")
            for name in [f"ours draft{lookup} -k {k}"]
        ]
    return modes


@dataclass(frozen=True)
class Agreement:
    """Compares a text with the reference: the first difference and its logit gap (None: the same text)."""

    mode: str
    prompt: str
    position: int | None
    gap: float | None
    limit: float = 0.0
    """Largest gap that rounding explains, by the rule of `verify` and `bench`."""

    @property
    def is_near_tie(self) -> bool:
        return self.gap is not None and self.gap <= self.limit


def agreement(run: Run, reference: Run, prompt: list[int], models: LoadedModels) -> Agreement:
    """Compares as `verify` and `bench` do: with a pass of the target over one token at that position."""
    pairs = zip(run.ids, reference.ids, strict=False)
    position = next((i for i, (ours_, theirs_) in enumerate(pairs) if ours_ != theirs_), None)
    if position is None:
        return Agreement(run.mode, run.prompt, None, None)
    PROMPT_OF.pop(id(models.target), None)
    text = [*prompt, *reference.ids[:position]]
    gap = logit_gap(models.target, models.target_info, text, reference.ids[position], run.ids[position])
    return Agreement(run.mode, run.prompt, position, gap.distance, gap.tolerance)


def _part(mode: Mode, category: str | None, categories: dict[str, str]) -> Mode:
    return Mode(mode.name, mode.run, [run for run in mode.runs if category in (None, categories[run.prompt])])


def table(modes: Sequence[Mode], baseline: Mode, categories: dict[str, str]) -> str:
    """Formats the speedup over `baseline` with its interval, by category and over all prompts."""
    names = [*dict.fromkeys(categories.values()), None]
    lines = [f"over {baseline.name}", f"{'mode':<28}" + "".join(f"{name or 'all':>22}" for name in names)]
    for mode in modes:
        cells = []
        for name in names:
            ratio, low, high = ratio_with_interval(_part(baseline, name, categories), _part(mode, name, categories))
            cells.append(f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"{mode.name:<28}" + "".join(f"{cell:>22}" for cell in cells))
    return "\n".join(lines)


def figures(modes: Sequence[Mode]) -> str:
    lines = []
    for mode in modes:
        seconds, tokens = sum(run.decode_seconds for run in mode.runs), sum(run.num_tokens for run in mode.runs)
        line = f"{mode.name:<28}{tokens / seconds:8.2f} tok/s{1000 * seconds / tokens:9.2f} ms/tok"
        line += f"{1000 * median(step for run in mode.runs for step in run.step_seconds):9.2f} ms/step, median"
        counts = [run.counts for run in mode.runs if run.counts is not None]
        if counts:
            drafted, accepted = sum(c.num_drafted for c in counts), sum(c.num_accepted for c in counts)
            overhead = sum(run.overhead_seconds for run in mode.runs)
            rounds = sum(c.num_rounds for c in counts)
            tar = f"{accepted / drafted:.1%}" if drafted else "n/a"
            line += f"   TAR {tar}   {tokens / rounds:.2f} tokens per round   outside {overhead / seconds:.1%}"
        lines.append(line)
    return "\n".join(lines)


def agreements_text(agreements: Sequence[Agreement], modes: Sequence[Mode]) -> str:
    lines = [f"texts against {modes[0].name}"]
    for mode in modes[1:]:
        own = [each for each in agreements if each.mode == mode.name]
        different = [each for each in own if each.gap is not None]
        near = [each for each in different if each.is_near_tie]
        line = f"{mode.name:<28}{len(own) - len(different)} of {len(own)} the same, {len(near)} near ties, "
        line += f"{len(different) - len(near)} DIFFERENT"
        for each in sorted(different, key=lambda each: (each.is_near_tie, -(each.gap or 0.0)))[:4]:
            line += f"; {each.prompt} from token {each.position}, gap {each.gap:.3f} of {each.limit:.3f}"
        lines.append(line)
    return "\n".join(lines)


def open_pair(arguments: argparse.Namespace, threads: int) -> LoadedModels:
    backend = BackendSettings("llama.cpp", context_size=arguments.context, threads=threads)
    target = ModelSettings(arguments.target, backend=backend, device="cpu")
    if arguments.draft is None:
        return load_models(resolve_pair(PairSettings(target, "none")))
    draft = ModelSettings(arguments.draft, backend=backend, device="cpu")
    return load_models(resolve_pair(PairSettings(target, "model", draft)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--target", required=True, help="a .gguf file")
    parser.add_argument("-d", "--draft", help="a .gguf file")
    parser.add_argument("-k", default="auto", help="our draft lengths, as in 2,4,auto; empty: plain decoding only")
    parser.add_argument(
        "--lookup", default="2,10", help="lengths of llama-cpp-python's lookup; 2 is its advice for CPUs; empty: none"
    )
    parser.add_argument("-n", type=int, default=128, help="new tokens")
    parser.add_argument("-r", type=int, default=1, help="repeats")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--prompts", help="JSONL with id, category and prompt")
    parser.add_argument("--limit", type=int, help="number of prompts of each category")
    parser.add_argument("--json", help="write all runs to this file")
    arguments = parser.parse_args()
    prepare_libraries(False)
    threads = arguments.threads or default_num_threads()
    models = open_pair(arguments, threads)
    modes = build_modes(arguments, models, threads)
    prompts = prompts_from(arguments.prompts)
    categories = {p["id"]: p.get("category", p["id"]) for p in prompts}
    if arguments.limit:
        kept = {
            c: [p["id"] for p in prompts if categories[p["id"]] == c][: arguments.limit] for c in categories.values()
        }
        prompts = [p for p in prompts if p["id"] in kept[categories[p["id"]]]]
    tokenizer = models.pair.tokenizer
    encoded = [(p["id"], ChatTemplate().encode(tokenizer, [Message("user", p["prompt"])])) for p in prompts]
    categories = {name: categories[name] for name, _ in encoded}
    for mode in modes:
        mode.run(encoded[0][1])
    agreements: list[Agreement] = []
    for turn, (name, ids) in enumerate(encoded * arguments.r):
        for mode in modes[turn % len(modes) :] + modes[: turn % len(modes)]:
            run = mode.run(ids)
            run.prompt = name
            mode.runs.append(run)
        agreements += [agreement(mode.runs[-1], modes[0].runs[-1], ids, models) for mode in modes[1:]]
        print(f"{turn + 1}/{len(encoded) * arguments.r} {name}", file=sys.stderr, flush=True)
        write(arguments, threads, modes, agreements)
    version = metadata.version("llama-cpp-python")
    print(f"{models.target_info.name} {models.target_info.quant}, llama-cpp-python {version}, {threads} threads")
    print(f"{arguments.n} tokens, {len(encoded)} prompts\n\n{figures(modes)}")
    plain = next(mode for mode in modes if mode.name == "ours plain")
    for baseline in (modes[0], plain):
        print(f"\n{table([mode for mode in modes if mode is not baseline], baseline, categories)}")
    print(f"\n{agreements_text(agreements, modes)}")


def write(arguments: argparse.Namespace, threads: int, modes: Sequence[Mode], agreements: Sequence[Agreement]) -> None:
    """Saves the runs so far; called after every prompt."""
    if arguments.json:
        document = {
            "environment": {"threads": threads, "machine": platform.machine()},
            "arguments": vars(arguments),
            "runs": [asdict(run) for mode in modes for run in mode.runs],
            "agreements": [asdict(each) for each in agreements],
        }
        Path(arguments.json).write_text(json.dumps(document))


if __name__ == "__main__":
    main()
