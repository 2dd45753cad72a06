"""Compares our plain loop, our speculation and transformers' own generation, interleaved on the same weights.

    python -m tests.perf -t TARGET -d DRAFT [-d DRAFT2:nf4] -k 2,4,auto [--prompts FILE] [-n 64] [-r 1] [--json OUT]

Every mode runs a prompt before the next prompt starts, in an order that rotates from prompt to prompt. Lengths are
equal (end tokens are ignored), and only decoding is timed. Ratios are of sums; the interval is a 95 % t interval on the
paired log ratios of the prompts. Not part of the test suite: run it while the machine is otherwise idle.

With --json the runs are written after every prompt. `--resume` continues that file, and `--minutes 3` ends after the
prompt that reaches three minutes, so a long comparison can be split. The costs that `-k auto` learned are not in the
file; it learns them again during the warm-up.

    --temperature 0.8 --verification both     block and token verification in the same run
    --sweep                                   transformers' assisted generation at several lengths and thresholds
    -k 1,2,4,6,8,auto --no-peers              auto against the best fixed length of each category
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from specgen.core.settings import BackendName, BackendSettings, ModelSettings, Verification
from specgen.loading.libraries import prepare_libraries
from specgen.loading.resolved_model import LoadedModel
from specgen.loading.weights import load_weights
from specgen.models.cached_model import CachedModel
from specgen.models.transformers_model import TransformersModel
from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.tokenizer import load_tokenizer
from specgen.text.vocabulary import table_size
from tests.loading.builders import resolved
from tests.perf import saved, tables
from tests.perf.modes import PROMPT_OF, SWEEP, Mode, Run, ours, ratio_with_interval, theirs

__all__ = ["PROMPT_OF", "Mode", "Run", "ours", "prompts_from", "ratio_with_interval"]

BUNDLED = [
    {"id": "code", "prompt": "Write a Python function that checks whether a string is a palindrome."},
    {"id": "chat", "prompt": "What should I consider before adopting a dog?"},
    {"id": "edit", "prompt": "Fix the grammar and return the sentence only: She go to school every days by bus."},
]


def load(name: str, dtype: str, role: Any, num_tokens: int, backend: BackendName = "torch") -> LoadedModel:
    """Loads a model given as `folder` or `folder:quant`."""
    folder, _, quant = name.partition(":")
    settings = ModelSettings(folder, quant or "none", dtype, backend=BackendSettings(backend))  # type: ignore[arg-type]
    return load_weights(resolved(Path(folder), settings, role=role), num_tokens)


def load_theirs(name: str, dtype: str, role: Any, num_tokens: int) -> TransformersModel:
    """Loads a model with transformers' code."""
    model = load(name, dtype, role, num_tokens, "transformers").model
    assert isinstance(model, TransformersModel)
    return model


def prompts_from(path: str | None) -> list[dict[str, str]]:
    if path is None:
        return BUNDLED
    return [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]


def build_modes(arguments: argparse.Namespace, target: CachedModel) -> list[Mode]:
    """Returns every way to generate, the target alone first. For those of transformers all models load again."""
    n, temperature, size = arguments.n, arguments.temperature, target.vocab_size
    modes = [ours("plain", target, None, "0", n, temperature=temperature)]
    labels = {}
    for name in arguments.draft:
        labels[Path(name).name if ":" in name else f"{Path(name).name}:{arguments.dtype}"] = name
    for label, name in labels.items():
        modes += our_modes(arguments, target, label, load(name, arguments.dtype, "draft", size).model)
    if arguments.lookup:
        modes += our_modes(arguments, target, "lookup", "lookup")
    if not (arguments.peers or arguments.sweep):
        return modes
    plain = load_theirs(arguments.target, arguments.dtype, "target", size)
    if arguments.peers:
        modes.append(ours("plain, transformers' forward", plain, None, "0", n, temperature=temperature))
        modes.append(theirs("transformers plain", plain.model, n, temperature=temperature))
    drafts = {label: load_theirs(name, arguments.dtype, "draft", size).model for label, name in labels.items()}
    modes += [
        theirs(
            f"transformers assisted {label}{suffix}",
            plain.model,
            n,
            temperature=temperature,
            assisted=settings,
            assistant_model=draft,
        )
        for label, draft in drafts.items()
        for suffix, settings in (SWEEP if arguments.sweep else {"": {}}).items()
    ]
    if arguments.peers and arguments.lookup:
        modes.append(
            theirs("transformers lookup", plain.model, n, temperature=temperature, prompt_lookup_num_tokens=10)
        )
    return modes


def our_modes(arguments: argparse.Namespace, target: CachedModel, label: str, draft: Any) -> list[Mode]:
    """Returns our loop with one draft, at each length and with each accept rule that differs."""
    # The two rules are equal for greedy decoding and for drafts that are point masses.
    is_sampled = arguments.temperature > 0 and draft != "lookup"
    rules: list[Verification] = ["block", "token"] if arguments.verification == "both" else [arguments.verification]
    made = []
    for k in arguments.k.split(","):
        for rule in rules if is_sampled else rules[:1]:
            name = f"lookup k={k}" if draft == "lookup" else f"spec {label} k={k}"
            name += f" {rule}" if is_sampled else ""
            mode = ours(name, target, draft, k, arguments.n, temperature=arguments.temperature, rule=rule)
            mode.draft, mode.length, mode.rule = label, k, rule if is_sampled else ""
            made.append(mode)
    return made


def choose_prompts(arguments: argparse.Namespace) -> list[dict[str, str]]:
    prompts = prompts_from(arguments.prompts)[: arguments.limit]
    if arguments.category:
        prompts = [p for p in prompts if p.get("category", p["id"]) in arguments.category.split(",")]
    if arguments.one_per_category:
        prompts = list({p.get("category", p["id"]): p for p in reversed(prompts)}.values())[::-1]
    return prompts


def arguments_from(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--target", required=True, help="folder, or folder:nf4")
    parser.add_argument("-d", "--draft", action="append", default=[], help="folder, or folder:nf4")
    parser.add_argument("-k", default="4", help="draft lengths, as in 2,4,auto")
    parser.add_argument("-n", type=int, default=64, help="new tokens")
    parser.add_argument("-r", type=int, default=1, help="repeats")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--verification", choices=("block", "token", "both"), default="block", help="above 0 only")
    parser.add_argument("--prompts", help="JSONL with id, category and prompt")
    parser.add_argument("--limit", type=int, help="number of prompts")
    parser.add_argument("--category", help="only prompts of these, as in code,edit")
    parser.add_argument("--one-per-category", action="store_true", help="only the first prompt of each category")
    parser.add_argument("--lookup", action="store_true", help="prompt lookup as well")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="omit transformers' generate")
    parser.add_argument("--sweep", action="store_true", help="transformers' assisted generation in several settings")
    parser.add_argument("--warm-up", type=int, help="tokens of the uncounted run; default: -n")
    parser.add_argument("--json", help="write all runs to this file, after every prompt")
    parser.add_argument("--resume", action="store_true", help="continue the runs in --json")
    parser.add_argument("--minutes", type=float, help="end after the prompt that reaches this time")
    arguments = parser.parse_args(words)
    if arguments.resume and not arguments.json:
        parser.error("--resume needs --json")
    return arguments


def main() -> None:
    arguments = arguments_from()
    prepare_libraries(False)
    tokenizer = load_tokenizer(Path(arguments.target.partition(":")[0]))
    loaded = load(arguments.target, arguments.dtype, "target", table_size(tokenizer))
    modes = build_modes(arguments, loaded.model)
    prompts = choose_prompts(arguments)
    encoded = [(p["id"], ChatTemplate().encode(tokenizer, [Message("user", p["prompt"])])) for p in prompts]
    num_done = saved.read(Path(arguments.json), vars(arguments), modes) if arguments.resume else 0
    run_all(arguments, modes, encoded, num_done, asdict(loaded.info))
    num_turns = min(len(mode.runs) for mode in modes)
    print(f"{loaded.info.name} {loaded.info.quant} {loaded.info.dtype}, {arguments.n} tokens, temperature ", end="")
    print(f"{arguments.temperature:g}, {num_turns} of {len(encoded) * arguments.r} turns over {len(encoded)} prompts\n")
    categories = {p["id"]: p.get("category", p["id"]) for p in prompts}
    print_tables(modes, categories)


def run_all(
    arguments: argparse.Namespace,
    modes: list[Mode],
    encoded: list[tuple[str, list[int]]],
    num_done: int,
    target: dict[str, Any],
) -> None:
    """Runs every prompt in every mode, from turn `num_done` on."""
    started = perf_counter()
    turns = encoded * arguments.r
    if num_done < len(turns):
        for mode in modes:
            mode.run(turns[num_done][1], num_tokens=arguments.warm_up or arguments.n)
    for turn in range(num_done, len(turns)):
        name, ids = turns[turn]
        first = turn % len(modes)
        for mode in modes[first:] + modes[:first]:
            run = mode.run(ids, seed=turn)
            run.prompt, run.turn = name, turn
            mode.runs.append(run)
        print(f"{turn + 1}/{len(turns)} {name}", file=sys.stderr, flush=True)
        if arguments.json:
            saved.write(Path(arguments.json), vars(arguments), target, modes)
        if arguments.minutes is not None and perf_counter() - started > 60 * arguments.minutes:
            break


def print_tables(modes: list[Mode], categories: dict[str, str]) -> None:
    for text in (
        tables.speeds(modes),
        tables.by_category(modes, categories),
        tables.auto_against_fixed(modes, categories),
        tables.block_against_token(modes, categories),
        tables.best_of_sweep(modes),
    ):
        if text:
            print(f"{text}\n")


if __name__ == "__main__":
    main()
