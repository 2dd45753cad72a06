"""Makes the JSON documents, CSV rows and Markdown of a benchmark. The JSON always contains the raw runs.

Names follow `specgen.render.jsonl`: seconds end in `_s`, sizes in `_bytes`, rates are fractions, null means unknown.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from specgen.bench.advice import Recommendation, command_line_for, recommend
from specgen.bench.figures import SettingFigures, figures_by_setting
from specgen.bench.results import BenchReport, Run, Setting
from specgen.bench.warnings import warnings_of
from specgen.core import __version__
from specgen.render.bench.columns import figure_columns, method_lines, name_columns
from specgen.render.jsonl import SCHEMA_VERSION, Document, model_document, stats_document
from specgen.render.theme import UNICODE_GLYPHS
from specgen.render.timings import warmup_document

CSV_COLUMNS = (
    *("engine", "draft", "k", "prompt", "category", "repeat", "started_s", "tokens"),
    *("prefill_s", "ttft_s", "decode_s", "draft_s", "verify_s"),
    *("rounds", "drafted", "accepted", "rejected", "peak_memory_bytes"),
    # The field's name of `engine`, which keeps its place in schema version 1.
    "backend",
    "concurrency",
    *("tree", "tree_rounds", "tree_nodes"),
    *("warmup_s", "warmup_tokens"),
)


def bench_document(report: BenchReport) -> Document:
    """Returns the whole benchmark as one document."""
    figures, costs = figures_by_setting(report), report.costs
    return {
        **start_document(report),
        "type": "bench",
        "is_complete": report.is_complete,
        "is_out_of_time": report.is_out_of_time,
        "results": [result_document(report, item) for item in figures],
        "categories": {
            category: [
                {
                    **_setting(item.setting),
                    **_speedup(item),
                    "predicted_speedup": item.predicted_speedup,
                    "draft_acceptance_rate": item.counts.acceptance_rate,
                }
                for item in figures_by_setting(report, category)
            ]
            for category in dict.fromkeys(prompt.category for prompt in report.prompts)
        },
        "costs": None
        if costs is None
        else {
            "verify_s": {str(n): seconds for n, seconds in sorted(costs.verify_seconds.items())},
            "draft_token_s": dict(costs.draft_seconds),
            "catch_up_s": dict(costs.catch_up_seconds),
            "cold_draft_s": dict(costs.cold_seconds),
            "reading_s": _by_size(costs.reading_seconds),
            "tree_pass_s": _by_size(costs.tree_pass_seconds),
        },
        "recommendation": _recommendation(recommend(figures)),
        "warnings": [asdict(warning) for warning in warnings_of(report, figures)],
        "notices": list(report.notices),
    }


def _by_size(costs: Mapping[str, Mapping[int, float]]) -> Document:
    """Returns seconds by the draft's label and the tokens of a pass."""
    return {label: {str(n): seconds for n, seconds in sorted(by_size.items())} for label, by_size in costs.items()}


def start_document(report: BenchReport) -> Document:
    """Returns what is known before the first run."""
    config = report.config
    return {
        "type": "start",
        "schema_version": SCHEMA_VERSION,
        "specgen_version": __version__,
        "environment": dict(report.environment),
        "target": model_document(report.target),
        "other_target": None if report.other_target is None else model_document(report.other_target),
        "drafts": {label: model_document(model) for label, model in report.drafts.items()},
        "config": {
            "max_new_tokens": config.num_tokens,
            "repeats": config.num_repeats,
            "warmups": config.num_warmups,
            "temperature": config.sampling.temperature,
            "top_k": config.sampling.top_k,
            "top_p": config.sampling.top_p,
            "min_p": config.sampling.min_p,
            "seed": config.sampling.seed,
            "same_text": config.sampling.same_text,
            "ignore_eos": not config.stops_at_end,
            "chat_template_kwargs": dict(config.template_variables),
        },
        "prompts": [
            {"id": prompt.id, "category": prompt.category, "prompt_tokens": prompt.num_tokens}
            for prompt in report.prompts
        ],
    }


def result_document(report: BenchReport, figures: SettingFigures) -> Document:
    """Returns the summary of a setting and its runs."""
    return {
        **_setting(figures.setting),
        "summary": {
            "num_runs": figures.num_runs,
            **_speedup(figures),
            "speedup_by_repeat": list(figures.repeat_ratios),
            "speedup_by_prompt": {report.prompts[i].id: ratio for i, ratio in figures.prompt_ratios.items()},
            "predicted_speedup": figures.predicted_speedup,
            "predicted_by_draft_tokens": {} if figures.forecast is None else dict(figures.forecast.by_length),
            "ttft_s": figures.ttft_seconds,
            "output_throughput": figures.output_throughput,
            "peak_memory_bytes": figures.peak_memory_bytes,
            "text": figures.text_verdict,
            "stats": stats_document(figures.counts),
        },
        "differences": [
            {
                "prompt": report.prompts[difference.prompt].id,
                "position": difference.position,
                "logit_gap": difference.gap.distance,
                "tolerance": difference.gap.tolerance,
                "is_near_tie": difference.is_near_tie,
            }
            for difference in report.differences
            if difference.setting == figures.index
        ],
        "runs": [run_document(report, run) for run in report.runs if run.setting == figures.index],
    }


def run_document(report: BenchReport, run: Run) -> Document:
    """Returns one run."""
    counts = run.counts
    return {
        "type": "run",
        **_setting(report.settings[run.setting]),
        "prompt": report.prompts[run.prompt].id,
        "category": report.prompts[run.prompt].category,
        "repeat": run.repeat,
        "started_s": run.started_seconds,
        "tokens": counts.num_emitted,
        "prefill_s": counts.prefill_seconds,
        "ttft_s": counts.ttft_seconds,
        "total_s": run.total_seconds or None,
        "decode_s": counts.decode_seconds,
        "draft_s": counts.draft_seconds,
        "verify_s": counts.verify_seconds,
        **warmup_document(counts),
        "rounds": counts.num_rounds,
        "drafted": counts.num_drafted,
        "accepted": counts.num_accepted,
        "rejected": counts.num_rejected,
        "tree_rounds": counts.num_tree_rounds,
        "tree_nodes": counts.num_tree_nodes,
        "peak_memory_bytes": run.peak_memory_bytes,
        "token_ids": list(run.token_ids),
    }


def _recommendation(advice: Recommendation) -> Document:
    """Returns what to use; `setting` is null for "do not speculate"."""
    chosen = advice.figures
    return {
        "setting": None if chosen is None else _setting(chosen.setting),
        "options": "-d none" if chosen is None else command_line_for(chosen.setting),
        "reason": advice.reason,
    }


def csv_text(report: BenchReport) -> str:
    """Returns one row per run."""
    output = io.StringIO()
    writer = csv.DictWriter(output, CSV_COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for run in report.runs:
        writer.writerow(run_document(report, run))
    return output.getvalue()


def markdown_text(report: BenchReport, figures: Sequence[SettingFigures], advice: Recommendation) -> str:
    """Returns Markdown for GitHub: the method, the table, the recommendation and all warnings."""
    best = None if advice.figures is None else advice.figures.index
    columns = [*name_columns(figures, None, ascii_only=False), *figure_columns(figures, best, UNICODE_GLYPHS)]
    rows = zip(*([_escaped(value) for value in column.values] for column in columns), strict=True)
    head = "Do not speculate" if best is None else "Recommended"
    warnings = [f"- {_escaped(warning.message)}" for warning in warnings_of(report, figures)]
    lines = [
        *(f"- {_escaped(line)}" for line in method_lines(report, ascii_only=False)),
        "",
        "| " + " | ".join(column.head for column in columns) + " |",
        "|" + "|".join(":--" if column.is_left else "--:" for column in columns) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        f"{head}: `{_recommendation(advice)['options']}`. {_escaped(advice.reason)}",
        *(["", "Warnings:", "", *warnings] if warnings else []),
        "",
    ]
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return re.sub(r"[\\`*_<>|\[\]]", r"\\\g<0>", text)


def _setting(setting: Setting) -> Document:
    return {
        "draft": None if setting.drafter == "none" else setting.label,
        "k": setting.length,
        "tree": setting.tree,
        "drafter": setting.drafter,
        "backend": setting.backend or None,
        "concurrency": setting.concurrency,
        # Key and value of 0.1.0, kept in schema version 1.
        "engine": {"torch": "transformers"}.get(setting.backend, setting.backend) or None,
    }


def _speedup(figures: SettingFigures) -> Document:
    interval = figures.interval
    return {
        "tokens_per_s": figures.counts.tokens_per_second,
        "speedup": figures.speedup,
        "speedup_interval_95": None if interval is None else [interval.low, interval.high],
    }
