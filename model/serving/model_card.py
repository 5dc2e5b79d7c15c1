"""The model card: what a bundle is, what it was made from, how good it is, and what it is not for."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from model.config import StreamConfig
from model.serving.bundle import Contents
from model.serving.parity_table import ParityTable, cost_lines, quality_lines


def model_card(
    name: str, contents: Contents, metrics: Mapping[str, Any], *, parity: ParityTable, max_candidates: int
) -> str:
    """The card in Markdown.

    Args:
        name: of the bundle.
        contents: of the bundle.
        metrics: `train` and `evaluate`, the contents of train.json and evaluate.json.
        parity: precisions side by side.
        max_candidates: candidates of a request in training.
    """
    evaluate, train = metrics["evaluate"], metrics["train"]
    parts = [
        f"# hstu2 ranker {name}",
        _what(contents),
        "## Trained on",
        _trained_on(contents, train),
        "## Measured",
        f"On the {evaluate['num_candidates']:,} candidates of {evaluate['num_requests']:,} requests after the cut, "
        "fp32. The floor is a logistic regression on smoothed rates of the training days.",
        _task_table(evaluate["tasks"]),
        "## Served in fewer bits",
        f"{parity.num_candidates:,} candidates of {parity.num_requests:,} requests of the same window on "
        f"{parity.device}, {', '.join(f'{package} {version}' for package, version in parity.versions.items())}. This "
        f"bundle holds its embedding rows in {contents.tables.label}. Latency: one request alone, from host memory to "
        "host memory.",
        "\n".join(quality_lines(parity, contents.model.heads.tasks)),
        "\n".join(cost_lines(parity)),
        "## Limits",
        _limits(contents, max_candidates),
    ]
    return "\n\n".join(parts) + "\n"


def _what(contents: Contents) -> str:
    model = contents.model
    tasks = ", ".join(model.heads.tasks)
    streams = "; ".join(f"{name}: {_stream(stream)}" for name, stream in model.streams.items())
    return (
        f"Given a user's history and a list of items, the probability of {tasks} for each of them. "
        f"HSTU 2.0 ({model.kind}), width {model.dim}, {model.num_heads} heads. {streams}."
    )


def _stream(stream: StreamConfig) -> str:
    cuts = "".join(f", the newest {keep} after layer {layer}" for layer, keep in stream.pyramid)
    plural = "" if stream.num_layers == 1 else "s"
    return f"{stream.num_layers} layer{plural} over at most {stream.max_length} events{cuts}"


def _trained_on(contents: Contents, train: Mapping[str, Any]) -> str:
    cut = datetime.datetime.fromtimestamp(contents.cut_ms / 1000, datetime.UTC)
    return (
        f"Requests before {cut:%Y-%m-%d %H:%M} UTC: {train['requests']:,} requests with {train['candidates']:,} "
        f"candidates in {contents.steps:,} steps. Hours and weekdays are those of {contents.timezone}. Ids seen too "
        f"rarely before the cut are out of vocabulary. Vocabulary {contents.vocabulary_hash[:12]}, training run "
        f"{contents.run_hash[:12]}."
    )


def _task_table(tasks: Mapping[str, Any]) -> str:
    lines = ["| task | base rate | NE | floor NE | AUC | floor AUC | positives |", "|---|---|---|---|---|---|---|"]
    for task, figures in tasks.items():
        cells = [_cell(figures[key]) for key in ("base_rate", "ne", "floor_ne", "auc", "floor_auc")]
        lines.append(f"| {task} | {' | '.join(cells)} | {figures['positives']:,} |")
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _limits(contents: Contents, max_candidates: int) -> str:
    lengths = ", ".join(f"{stream.max_length} of {name}" for name, stream in contents.model.streams.items())
    return "\n".join(
        [
            "- Probabilities are those of impressions that the logs' own recommender chose; items that it never showed "
            "are outside of what was learnt.",
            f"- Only the newest events are read: {lengths}. Candidates do not see each other: a list's order or "
            f"variety is not modelled. In training a request had at most {max_candidates} candidates.",
            "- A user or item without a vocabulary row is scored through what is known of it beside its id; the scores "
            "say so in their flags. Check the flagged share before you trust an average.",
            "- Tasks with few positives in the table above have wide error bars, whatever their digits.",
            "- The codes of streams and requests must come from this bundle's vocabulary; another one is refused.",
        ]
    )
