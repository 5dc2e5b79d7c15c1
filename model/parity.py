"""What each precision of a served model costs and what it saves, side by side.

python -m model.parity        the trained model, the whole evaluation window: a table and bench/inference.json

Every row is the same checkpoint, its embedding rows or its layers in fewer bits, scored with cached histories.
"""

from __future__ import annotations

import argparse
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from features.dataset import open_dataset
from features.files import write_json
from model.checkpoint import Checkpoint, check_compatible, load_checkpoint
from model.config import ModelConfig
from model.embeddings import table_fields
from model.evaluation import Scores, measure
from model.export_tables import segment_rows
from model.loss import task_labels
from model.parity_table import ParityTable, TaskFigures, VariantFigures, cost_lines, quality_lines, versions
from model.progress import Progress
from model.quantize import TableFormat
from model.ranker import Ranker
from model.score_config import ExportConfig, ScoreConfig
from model.score_window import Window, evaluation_window
from model.scorer_model import ServedModel
from model.stage import run_stage
from model.train_config import EvaluateConfig, Group

logger = logging.getLogger(__name__)
_LATENCY_REQUESTS = 200
_GROUP_SIZE = 32


@dataclass(frozen=True)
class Variant:
    """A way to serve a checkpoint."""

    tables: TableFormat
    compute: str

    @property
    def label(self) -> str:
        """The name of its row."""
        return self.tables.label if self.compute == "fp32" else f"{self.compute}, tables {self.tables.label}"


def standard_variants(dim: int, config: ExportConfig, *, compute: str) -> list[Variant]:
    """fp32 first, then each narrower way, then the exported one if it is none of them."""
    plain = config.format_of("fp32")
    formats = [config.format_of("fp16"), config.format_of("int8"), config.format_of("int4")]
    formats += [config.format_of("int4", size) for size in (_GROUP_SIZE,) if dim % size == 0 and dim > size]
    variants = [Variant(plain, "fp32"), Variant(plain, "bf16"), *(Variant(one, "fp32") for one in formats)]
    exported = Variant(config.table_format, compute)
    return variants if exported in variants else [*variants, exported]


def served_model(checkpoint: Checkpoint, variant: Variant, config: ScoreConfig) -> ServedModel:
    """The checkpoint as a bundle of this variant would serve it."""
    header = checkpoint.header
    model = ServedModel(
        config.serving(header.model),
        header.spec,
        variant.tables,
        device=config.torch_device(),
        placement=config.placement,
    )
    segments = segment_rows(checkpoint.tensors["tables"], header.model, header.spec, table_format=variant.tables)
    model.load(dict(checkpoint.tensors["dense"]), segments)
    return model


def measure_variants(
    checkpoint: Checkpoint,
    window: Window,
    variants: Sequence[Variant],
    *,
    config: ScoreConfig,
    groups: Mapping[Group, tuple[str, ...]],
) -> ParityTable:
    """Scores the window once per variant.

    Args:
        checkpoint: the trained model.
        window: what to score.
        variants: rows of the table, the first is what the others are compared with.
        config: section score.
        groups: tasks of C-NE and E-NE.
    """
    dim = checkpoint.header.model.dim
    fields = table_fields(checkpoint.header.model, checkpoint.header.spec)
    full_bytes = 4 * dim * sum(field.size for field in fields)
    rows: list[VariantFigures] = []
    reference: torch.Tensor | None = None
    num_candidates = 0
    for variant in variants:
        model = served_model(checkpoint, variant, config)
        scores, seconds = _score(model, variant, window, config)
        probability_CK = torch.sigmoid(scores.logits_CK)
        reference = probability_CK if reference is None else reference
        num_candidates = scores.logits_CK.shape[0]
        evaluation = measure(
            scores, [None] * scores.logits_CK.shape[1], model.config.heads.tasks, groups=groups, cut_ms=0
        )
        latency_ms = _latencies(model, variant, window, config)
        table_bytes = variant.tables.num_bytes(fields, dim)
        rows.append(
            VariantFigures(
                label=variant.label,
                tasks={task: TaskFigures(result.ne, result.auc) for task, result in evaluation.tasks.items()},
                c_ne=evaluation.c_ne,
                e_ne=evaluation.e_ne,
                table_bytes=table_bytes,
                table_share=table_bytes / full_bytes,
                largest_difference=float((probability_CK - reference).abs().max()),
                latency_p50_ms=float(np.percentile(latency_ms, 50)),
                latency_p99_ms=float(np.percentile(latency_ms, 99)),
                candidates_per_s=num_candidates / seconds,
            )
        )
    return ParityTable(tuple(rows), window.num_requests, num_candidates, device_name(config), versions())


def _score(model: ServedModel, variant: Variant, window: Window, config: ScoreConfig) -> tuple[Scores, float]:
    tasks, actions = model.config.heads.tasks, model.spec.actions
    logits, labels, users = [], [], []
    progress = Progress(logger, f"parity, {variant.label}: batch", total=len(window.plan))
    started = time.perf_counter()
    for batch in window.batches():
        predictions = model(batch, micro_batch_size=config.micro_batch_size, compute=variant.compute)
        logits.append(predictions.logits_CK.cpu())
        labels.append(task_labels(batch.candidates.action_mask_C, tasks, actions).bool())
        users.append(torch.repeat_interleave(batch.user_id_B, batch.candidates.offsets_B1.diff()))
        progress.advance(requests=batch.num_requests, candidates=users[-1].numel())
    seconds = time.perf_counter() - started
    progress.log()
    return Scores(torch.cat(logits), torch.cat(labels), torch.cat(users), window.num_requests), seconds


def _latencies(model: ServedModel, variant: Variant, window: Window, config: ScoreConfig) -> list[float]:
    """Milliseconds of single requests; the first few warm caches up and do not count."""
    latencies = []
    for batch in window.single_requests(_LATENCY_REQUESTS):
        started = time.perf_counter()
        model(batch, micro_batch_size=config.micro_batch_size, compute=variant.compute).logits_CK.cpu()
        latencies.append(1000 * (time.perf_counter() - started))
    return latencies[len(latencies) // 10 :]


def training_forward_rate(checkpoint: Checkpoint, window: Window, config: ScoreConfig) -> float:
    """Candidates a second of the ranker's own forward, one request at a time: what the scorer is compared with."""
    header, device = checkpoint.header, config.torch_device()
    ranker = Ranker(config.serving(header.model), header.spec, device=device)
    ranker.load_state(dict(checkpoint.tensors["dense"]), dict(checkpoint.tensors["tables"]))
    ranker.eval()
    candidates, seconds = 0, 0.0
    with torch.inference_mode():
        for number, batch in enumerate(window.single_requests(_LATENCY_REQUESTS)):
            started = time.perf_counter()
            ranker(batch.to(device)).logits_CK.cpu()
            if number >= _LATENCY_REQUESTS // 10:
                seconds += time.perf_counter() - started
                candidates += batch.candidates.action_mask_C.numel()
    return candidates / seconds


def device_name(config: ScoreConfig) -> str:
    """The card, or the processor and its threads."""
    if config.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def run(params: Path, streams: Path, model: Path, *, out: Path, max_requests: int | None) -> None:
    """Measures all variants and the training forward, and writes the table.

    Raises:
        DataError: the model does not belong to the dataset or to params.yaml.
    """
    config, export = ScoreConfig.load(params), ExportConfig.load(params)
    model_config = ModelConfig.load(params)
    torch.set_num_threads(config.num_threads)
    dataset, checkpoint = open_dataset(streams), load_checkpoint(model)
    check_compatible(
        checkpoint.header,
        model_config,
        dataset.manifest.spec,
        vocabulary_hash=dataset.manifest.vocabulary_hash,
        source=model,
    )
    window = evaluation_window(
        dataset, model_config, max_requests=max_requests, tokens_per_batch=config.tokens_per_batch
    )
    variants = standard_variants(model_config.dim, export, compute=config.compute)
    table = measure_variants(checkpoint, window, variants, config=config, groups=EvaluateConfig.load(params).groups)
    rate = training_forward_rate(checkpoint, window, config)
    write_json(out, table.to_json() | {"training_forward_one_request_at_a_time_candidates_per_s": rate})
    for line in (*quality_lines(table, model_config.heads.tasks), *cost_lines(table)):
        logger.info("%s", line)
    logger.info("training forward, one request at a time: %.0f candidates/s", rate)


def main() -> None:
    """Command line; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--model", type=Path, default=Path("models/ranker"))
    parser.add_argument("--out", type=Path, default=Path("bench/inference.json"))
    parser.add_argument("--max-requests", type=int, default=None, help="evenly spaced ones; all unless given")
    args = parser.parse_args()
    run_stage(lambda: run(args.params, args.streams, args.model, out=args.out, max_requests=args.max_requests))


if __name__ == "__main__":
    main()
