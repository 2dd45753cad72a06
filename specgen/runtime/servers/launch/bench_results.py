"""Reads what to launch from the results of `specgen bench`: the setting that it recommends."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specgen.core.errors import PromptError, first_line
from specgen.runtime.servers.launch.values import Speculation, Vocabulary

_LOOKUP = "+lookup"
_VOCABULARY = re.compile(r" by (shared tokens|text)(\+lookup)?$")
"""End of the label of a draft with other tokens than the target's."""


@dataclass(frozen=True, slots=True)
class BenchChoice:
    """What a benchmark recommends.

    Args:
        target: The target's name; that of a local model has no folder.
        speculation: None: no draft was faster than the target alone.
        quant: Weight format of the target.
        draft_quant: Weight format of the draft; empty without a draft model.
    """

    target: str
    speculation: Speculation | None
    quant: str
    draft_quant: str = ""


def read_bench_results(text: str, source: str) -> BenchChoice:
    """Reads the document that `specgen bench` writes with `--format json`, `--format ndjson` or `--export-json`.

    Args:
        text: The content of the file.
        source: Its name, for messages.

    Raises:
        PromptError: The file is not such a document.
    """
    try:
        document = json.loads(text.strip().rpartition("\n")[2] if text.lstrip().startswith('{"type":"start"') else text)
        if document["type"] != "bench":
            raise ValueError(f"its type is {document['type']!r}")
        return _choice(document)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration) as error:
        raise PromptError(
            f"{source} has no results of specgen bench: {first_line(error)}",
            "make them: specgen bench --export-json FILE",
        ) from error


def _choice(document: dict[str, Any]) -> BenchChoice:
    target, advice = document["target"], document["recommendation"]
    setting = advice["setting"]
    if setting is None:
        return BenchChoice(str(target["id"]), None, str(target["quant"]))
    result = _result_for(document["results"], setting)
    stats = result["summary"]["stats"]
    is_adaptive = result["k"] == "auto"
    # Rounds without a draft count: a fixed length is drafted in every round.
    mean = stats["num_draft_tokens"] / max(stats["num_spec_steps"], 1)
    length = max(round(mean), 1) if is_adaptive else int(result["k"])
    has_lookup = "lookup" in setting["drafter"]
    if setting["drafter"] == "lookup":
        return BenchChoice(str(target["id"]), Speculation(None, True, length, is_adaptive), str(target["quant"]))
    label = str(setting["draft"])
    draft = document["drafts"][label]
    words = shlex.split(advice["options"])
    typed = words[words.index("-d") + 1].removesuffix(_LOOKUP)
    # What `auto` chose has no name on the command line.
    name = str(draft["id"]) if typed.partition(":")[0] == "auto" else typed
    found = _VOCABULARY.search(label)
    vocabulary: Vocabulary = "same" if found is None else "text" if found[1] == "text" else "shared"
    speculation = Speculation(name, has_lookup, length, is_adaptive, vocabulary)
    return BenchChoice(str(target["id"]), speculation, str(target["quant"]), str(draft["quant"]))


def _result_for(results: Sequence[dict[str, Any]], setting: dict[str, Any]) -> dict[str, Any]:
    """Returns the result of a setting; of one with trees the fastest chains of its draft, since engines draft chains.

    Trees are returned if no chains were measured. Older documents have no trees.
    """
    of_draft = [one for one in results if all(one[key] == setting[key] for key in ("draft", "drafter"))]
    chains = [one for one in of_draft if one.get("tree", "off") == "off"]
    if setting.get("tree", "off") == "off":
        return next(one for one in chains if one["k"] == setting["k"])
    found = next(one for one in of_draft if (one["k"], one.get("tree")) == (setting["k"], setting["tree"]))
    return max(chains, key=lambda one: one["summary"]["speedup"] or 0.0, default=found)
