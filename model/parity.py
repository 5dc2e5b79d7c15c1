"""What each precision of a served model costs and what it saves, side by side.

python -m model.parity                             the trained model: a table and bench/inference.json
python -m model.parity --bundle models/bundle      with a row for the exported bundle

The rows are the same checkpoint, its embedding rows or its layers in fewer bits, scored with cached histories.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from features.dataset import open_dataset
from features.files import write_json
from model.batch import Batch
from model.config import ModelConfig
from model.ranker import Ranker
from model.scorer import Scorer
from model.serving.bundle import Bundle, open_bundle
from model.serving.export_tables import segment_rows
from model.serving.parity_measure import Served, measure_all, one_at_a_time
from model.serving.parity_table import cost_lines, quality_lines
from model.serving.precision import Compute
from model.serving.quantize import TableFormat
from model.serving.score_config import ExportConfig, ScoreConfig
from model.serving.score_window import Window, evaluation_window
from model.serving.scorer_model import ServedModel
from model.stage import run_stage
from model.training.checkpoint import Checkpoint, check_compatible, load_checkpoint
from model.training.train_config import EvaluateConfig

logger = logging.getLogger(__name__)
_GROUP_SIZE = 32


def standard_variants(checkpoint: Checkpoint, config: ExportConfig, score: ScoreConfig) -> list[Served]:
    """The checkpoint in fp32 first, then in each narrower way."""
    dim = checkpoint.header.model.dim
    plain = config.format_of("fp32")
    formats = [config.format_of("fp16"), config.format_of("int8"), config.format_of("int4")]
    formats += [config.format_of("int4", size) for size in (_GROUP_SIZE,) if dim % size == 0 and dim > size]
    computed: tuple[Compute, ...] = ("fp32", "bf16", "fp8")
    variants: list[tuple[TableFormat, Compute]] = [(plain, compute) for compute in computed]
    variants += [(one, "fp32") for one in formats]
    return [
        Served(
            _label(one, compute, score.device), partial(served_model, checkpoint, one, config=score, compute=compute)
        )
        for one, compute in variants
    ]


def _label(table_format: TableFormat, compute: Compute, device: str) -> str:
    if compute == "fp32":
        return table_format.label
    simulated = " simulated" if compute == "fp8" and device == "cpu" else ""
    return f"{compute}{simulated}, tables {table_format.label}"


def served_bundle(bundle: Bundle, score: ScoreConfig) -> Served:
    """The bundle as it lies on disk, computed as section score says."""
    label = f"bundle {bundle.manifest.name}, {bundle.contents.tables.label}"
    return Served(label, lambda: Scorer(bundle, score).model)


def served_model(
    checkpoint: Checkpoint, table_format: TableFormat, *, config: ScoreConfig, compute: Compute
) -> ServedModel:
    """The checkpoint as a bundle of this format would serve it."""
    header = checkpoint.header
    model = ServedModel(
        config.serving(header.model),
        header.spec,
        table_format,
        device=config.torch_device(),
        placement=config.placement,
        compute=compute,
    )
    segments = segment_rows(checkpoint.tensors["tables"], header.model, header.spec, table_format=table_format)
    model.load(dict(checkpoint.tensors["dense"]), segments)
    return model


def training_forward_rate(checkpoint: Checkpoint, window: Window, config: ScoreConfig) -> float:
    """Candidates a second of the ranker's own forward, one request at a time: what the scorer is compared with."""
    header, device = checkpoint.header, config.torch_device()
    ranker = Ranker(config.serving(header.model), header.spec, device=device)
    ranker.load_state(dict(checkpoint.tensors["dense"]), dict(checkpoint.tensors["tables"]))
    ranker.eval()

    def score(batch: Batch) -> None:
        with torch.inference_mode():
            ranker(batch.to(device)).logits_CK.cpu()

    return one_at_a_time(score, window)


@dataclass(frozen=True)
class ParityPaths:
    """Inputs and output."""

    params: Path
    streams: Path
    model: Path
    bundle: Path | None
    out: Path


def run(paths: ParityPaths, *, max_requests: int | None) -> None:
    """Measures all variants and the training forward, and writes the table.

    Raises:
        DataError: the model or the bundle does not belong to the dataset or to params.yaml.
    """
    config, export = ScoreConfig.load(paths.params), ExportConfig.load(paths.params)
    model_config = ModelConfig.load(paths.params)
    torch.set_num_threads(config.num_threads)
    dataset, checkpoint = open_dataset(paths.streams), load_checkpoint(paths.model)
    check_compatible(
        checkpoint.header,
        model_config,
        dataset.manifest.spec,
        vocabulary_hash=dataset.manifest.vocabulary_hash,
        source=paths.model,
    )
    served = standard_variants(checkpoint, export, config)
    if paths.bundle is not None:
        bundle = open_bundle(paths.bundle)
        bundle.check_dataset(dataset)
        served.append(served_bundle(bundle, config))
    window = evaluation_window(
        dataset, model_config, max_requests=max_requests, tokens_per_batch=config.tokens_per_batch
    )
    table = measure_all(served, window, config=config, groups=EvaluateConfig.load(paths.params).groups)
    rate = training_forward_rate(checkpoint, window, config)
    write_json(paths.out, table.to_json() | {"training_forward_one_request_at_a_time_candidates_per_s": rate})
    for line in (*quality_lines(table, model_config.heads.tasks), *cost_lines(table)):
        logger.info("%s", line)
    logger.info("training forward, one request at a time: %.0f candidates/s", rate)


def main() -> None:
    """Command line; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--model", type=Path, default=Path("models/ranker"))
    parser.add_argument("--bundle", type=Path, default=None, help="a row for this bundle as it lies on disk")
    parser.add_argument("--out", type=Path, default=Path("bench/inference.json"))
    parser.add_argument("--max-requests", type=int, default=None, help="evenly spaced ones; all unless given")
    args = vars(parser.parse_args())
    max_requests = args.pop("max_requests")
    run_stage(lambda: run(ParityPaths(**args), max_requests=max_requests))


if __name__ == "__main__":
    main()
