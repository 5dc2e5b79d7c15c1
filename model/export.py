"""The stage `export`: a trained ranker and its vocabulary in, one bundle out that scores without anything else."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from features.config import DataConfig, FeaturesConfig
from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from features.schema import check_schema, side_table_schema
from features.side import encode_side_table
from features.vocabulary import VocabularySet
from model.config import ModelConfig
from model.parity import served_bundle, standard_variants
from model.serving.bundle import (
    CARD,
    ITEMS,
    METRICS,
    PARAMS,
    TABLES,
    VOCABULARY,
    WEIGHTS,
    Bundle,
    BundleManifest,
    Contents,
    open_bundle,
    publish,
)
from model.serving.export_tables import named_segments, segment_rows
from model.serving.model_card import model_card
from model.serving.parity_measure import measure_all
from model.serving.parity_table import ParityTable, cost_lines, quality_lines
from model.serving.score_config import ExportConfig, ScoreConfig
from model.serving.score_encode import catalogue_table
from model.serving.score_window import evaluation_window
from model.serving.scorer_model import check_cacheable
from model.stage import run_stage
from model.training.checkpoint import Checkpoint, check_compatible, load_checkpoint
from model.training.train_config import EvaluateConfig

logger = logging.getLogger(__name__)
# The sections that say what a bundle is; how it was evaluated, or is served, is not in it.
_SECTIONS = ("data", "features", "model", "train", "export")


@dataclass(frozen=True)
class ExportPaths:
    """Inputs and outputs of the stage."""

    params: Path
    events: Path
    vocab: Path
    streams: Path
    model: Path
    metrics: Path
    out: Path


def export(paths: ExportPaths) -> None:
    """Runs the stage: `out` then holds one bundle, in a folder of its name.

    Raises:
        DataError: model, vocabulary, streams and params.yaml do not belong together, or the model's kind is not served.
    """
    config, model_config = ExportConfig.load(paths.params), ModelConfig.load(paths.params)
    features, score = FeaturesConfig.load(paths.params), ScoreConfig.load(paths.params)
    check_cacheable(model_config)
    torch.set_num_threads(score.num_threads)
    dataset = open_dataset(paths.streams)
    vocabularies = load_vocabulary(paths.vocab, dataset)
    with atomic_directory(paths.out) as directory:
        checkpoint = load_checkpoint(paths.model)
        check_compatible(
            checkpoint.header,
            model_config,
            dataset.manifest.spec,
            vocabulary_hash=vocabularies.hash,
            source=paths.model,
        )
        bundle = directory / "bundle"
        categories = tuple(field.name for field in dataset.manifest.spec.item_fields[1:])
        contents = contents_of(checkpoint, config, dataset, timezone=DataConfig.load(paths.params).timezone)
        write_weights(bundle, checkpoint, contents)
        write_settings(bundle, paths.params)
        write_ids(bundle, vocabularies, paths.events / "items.parquet", categories=categories)
        # the name is that of what decides a score, so it is known before anything is measured
        name = publish(bundle, contents).name
        logger.info("export: bundle %s, embedding rows in %s", name, contents.tables.label)
        parity = measure_parity(paths, checkpoint, open_bundle(bundle), dataset=dataset)
        metrics = read_metrics(paths.metrics)
        write_json(bundle / METRICS, metrics | {"parity": parity.to_json()})
        card = model_card(name, contents, metrics, parity=parity, max_candidates=features.requests.max_candidates)
        (bundle / CARD).write_text(card, encoding="utf-8")
        manifest = publish(bundle, contents)
        bundle.rename(directory / manifest.name)
    write_json(paths.metrics / "inference.json", parity.to_json() | {"bundle": name})
    log_summary(paths.out, manifest, parity)


def load_vocabulary(path: Path, dataset: StreamsDataset) -> VocabularySet:
    """The vocabulary that the streams were built with.

    Raises:
        DataError: it is another one.
    """
    vocabularies = VocabularySet.load(path)
    if vocabularies.hash != dataset.manifest.vocabulary_hash:
        raise DataError(
            f"{path}: vocabulary {vocabularies.hash[:12]}, {dataset.path} was built with "
            f"{dataset.manifest.vocabulary_hash[:12]}; run the streams stage again"
        )
    return vocabularies


def contents_of(checkpoint: Checkpoint, config: ExportConfig, dataset: StreamsDataset, *, timezone: str) -> Contents:
    """What the manifest says beside the files."""
    header = checkpoint.header
    return Contents(
        tables=config.table_format,
        model=header.model,
        spec=header.spec,
        schema_hash=dataset.manifest.schema_hash,
        vocabulary_hash=header.vocabulary_hash,
        timezone=timezone,
        cut_ms=dataset.manifest.cut_ms,
        run_hash=header.run_hash,
        steps=header.step,
    )


def write_weights(bundle: Path, checkpoint: Checkpoint, contents: Contents) -> None:
    """Writes the dense parameters and the quantised rows."""
    bundle.mkdir(exist_ok=True)
    _save(bundle / WEIGHTS, dict(checkpoint.tensors["dense"]))
    segments = segment_rows(checkpoint.tensors["tables"], contents.model, contents.spec, table_format=contents.tables)
    _save(bundle / TABLES, named_segments(segments))


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
    # safetensors makes files that only their owner may read
    path.chmod(0o644)


def write_settings(bundle: Path, params: Path) -> None:
    """Writes the sections that made the model."""
    document = yaml.safe_load(params.read_text())
    text = yaml.safe_dump({name: document[name] for name in _SECTIONS}, sort_keys=False, allow_unicode=True)
    (bundle / PARAMS).write_text(text, encoding="utf-8")


def write_ids(bundle: Path, vocabularies: VocabularySet, items: Path, *, categories: tuple[str, ...]) -> None:
    """Writes the vocabulary and the catalogue of items.

    Raises:
        DataError: ITEMS is missing or of another schema.
    """
    (bundle / VOCABULARY).mkdir()
    vocabularies.save(bundle / VOCABULARY)
    try:
        table = pq.read_table(items)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{items}: cannot be read: {error}; run the ingest stage again") from None
    check_schema(table.schema, side_table_schema("item_id", categories), str(items))
    codes = encode_side_table(table, "item_id", categories, vocabularies)
    pq.write_table(catalogue_table(codes, categories), bundle / ITEMS, compression="zstd")


def measure_parity(
    paths: ExportPaths, checkpoint: Checkpoint, bundle: Bundle, *, dataset: StreamsDataset
) -> ParityTable:
    """Every precision, and the bundle as it lies on disk, on the evaluation window."""
    config, score = ExportConfig.load(paths.params), ScoreConfig.load(paths.params)
    window = evaluation_window(
        dataset,
        checkpoint.header.model,
        max_requests=config.parity_requests,
        tokens_per_batch=score.tokens_per_batch,
    )
    if window.num_requests == 0:
        raise DataError(f"{dataset.path}: no requests in the evaluation window")
    served = [*standard_variants(checkpoint, config, score), served_bundle(bundle, score)]
    return measure_all(served, window, config=score, groups=EvaluateConfig.load(paths.params).groups)


def read_metrics(directory: Path) -> dict[str, Any]:
    """What the stages train and evaluate measured."""
    return {name: read_json(directory / f"{name}.json") for name in ("train", "evaluate")}


def log_summary(out: Path, manifest: BundleManifest, parity: ParityTable) -> None:
    """Says where the bundle is, and the table."""
    size = sum(entry.bytes for entry in manifest.files.values())
    logger.info("export: %s, %.2f MB in %d files", out / manifest.name, size / 1e6, len(manifest.files))
    for line in (*quality_lines(parity, ()), *cost_lines(parity)):
        logger.info("%s", line)


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.export", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--events", type=Path, default=Path("data/events"))
    parser.add_argument("--vocab", type=Path, default=Path("data/vocab"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--model", type=Path, default=Path("models/ranker"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"))
    parser.add_argument("--out", type=Path, default=Path("models/bundle"))
    paths = ExportPaths(**vars(parser.parse_args()))
    run_stage(lambda: export(paths))


if __name__ == "__main__":
    main()
