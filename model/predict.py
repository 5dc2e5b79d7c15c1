"""Scores the evaluation window of a dataset with several models, so that they can be compared candidate by candidate.

A model of another night knows the same keys by other rows: every code is translated through the keys, and a key that
the model has never seen is unknown to it, as it would be if it served today.

Legend: B requests, C candidates, K tasks, F fields.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import atomic_file
from features.spec import CategoricalField, FeatureSpec
from features.vocabulary import FIRST_KEY, UNKNOWN, VocabularySet
from model.batch import Batch
from model.config import ModelConfig
from model.evaluation import Scores, score_candidates
from model.ranker import Ranker
from model.reader import Reader
from model.stage import device_of, max_lengths, run_stage
from model.training.checkpoint import load_checkpoint
from model.training.sampler import EVALUATION
from model.training.train_config import EvaluateConfig

logger = logging.getLogger(__name__)
HISTORY_CAP = 4096
LATENCY_REQUESTS = 24
METADATA = b"hstu2"


@dataclass(frozen=True)
class PredictPaths:
    """Inputs and output; `models` maps a name to a folder that holds `ranker` and `vocab`."""

    params: Path
    streams: Path
    vocab: Path
    models: Mapping[str, Path]
    out: Path


@dataclass(frozen=True)
class Translation:
    """Codes of a dataset to those of a model: `rows[field][code]`; a field that is missing needs none."""

    rows: Mapping[str, Tensor]

    def batch(self, batch: Batch, spec: FeatureSpec) -> Batch:
        """The batch in the model's codes."""
        streams = tuple(
            replace(
                stream,
                items_TF=self._columns(stream.items_TF, spec.item_fields),
                contexts_TX=self._columns(stream.contexts_TX, spec.token_contexts),
            )
            for stream in batch.streams
        )
        candidates = replace(
            batch.candidates,
            items_CF=self._columns(batch.candidates.items_CF, spec.item_fields),
            contexts_CX=self._columns(batch.candidates.contexts_CX, spec.candidate_contexts),
        )
        users_BF = self._columns(batch.users_BF, spec.user_fields)
        return replace(batch, users_BF=users_BF, streams=streams, candidates=candidates)

    def _columns(self, codes_NF: Tensor, fields: tuple[CategoricalField, ...]) -> Tensor:
        columns = [
            self.rows[field.name][codes_NF[:, column].long()] if field.name in self.rows else codes_NF[:, column]
            for column, field in enumerate(fields)
        ]
        return torch.stack(columns, dim=1) if columns else codes_NF


def translate(source: VocabularySet, target: VocabularySet) -> Translation:
    """From the rows of one vocabulary to those of another: null stays null, a key that the target lacks is unknown."""
    rows = {}
    for vocabulary in source.vocabularies:
        of_keys = target.field(vocabulary.field).lookup(vocabulary.keys)
        rows[vocabulary.field] = torch.from_numpy(np.concatenate([np.arange(FIRST_KEY, dtype=np.int32), of_keys]))
    return Translation(rows)


def check_same_features(model: FeatureSpec, dataset: FeatureSpec, source: Path) -> None:
    """Refuses a model whose inputs or labels mean something else than the dataset's.

    Raises:
        DataError: names what differs.
    """

    def shape(spec: FeatureSpec) -> dict[str, object]:
        names = {group: [field.name for field in getattr(spec, group)] for group in ("item_fields", "user_fields")}
        contexts = {
            group: [(field.name, field.size) for field in getattr(spec, group) if field.name != "surface"]
            for group in ("token_contexts", "candidate_contexts")
        }
        rest = {"actions": spec.actions, "streams": spec.streams, "intensity": spec.intensity_size}
        return {**names, **contexts, **rest}

    ours, theirs = shape(model), shape(dataset)
    different = [name for name in ours if ours[name] != theirs[name]]
    if different:
        raise DataError(f"{source}: not comparable, it was trained on other features ({', '.join(different)})")


class TranslatedReader(Reader):
    """A reader of the evaluation window whose batches are in a model's codes."""

    def __init__(self, dataset: StreamsDataset, ranker: Ranker, translation: Translation, *, batch_size: int) -> None:
        """Prepares it.

        Args:
            dataset: what to read.
            ranker: tells how much of each history is needed.
            translation: from the dataset's codes.
            batch_size: requests per batch.

        Raises:
            DataError: the window is empty.
        """
        lengths = max_lengths(ranker.config, dataset.manifest.spec)
        super().__init__(dataset, split=EVALUATION, batch_size=batch_size, max_lengths=lengths)
        self._translation = translation
        if self.num_requests == 0:
            raise DataError(f"{dataset.path}: no requests in the evaluation window")

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            yield self._translation.batch(batch, self.spec)


def predict(paths: PredictPaths) -> None:
    """Scores every evaluation candidate once with every model and writes one table.

    Columns: user_id, request_id, history (events of the first stream, at most HISTORY_CAP), cold (the item is unknown
    to the dataset's vocabulary), surface, `label <task>`, `logit <model> <task>`. The schema's metadata has the tasks
    and each model's milliseconds per request.

    Raises:
        DataError: a model and the dataset do not belong together, or there is nothing to score.
    """
    config, params = EvaluateConfig.load(paths.params), ModelConfig.load(paths.params)
    torch.set_num_threads(config.num_threads)
    dataset, vocabularies = open_dataset(paths.streams), VocabularySet.load(paths.vocab)
    if vocabularies.hash != dataset.manifest.vocabulary_hash:
        raise DataError(f"{paths.vocab}: is not the vocabulary of {paths.streams}; run the streams stage again")
    columns, latency, tasks = _facts(dataset, config.batch_size), {}, params.heads.tasks
    for name, folder in paths.models.items():
        logger.info("predict: %s, %s", name, folder)
        translation = translate(vocabularies, VocabularySet.load(folder / "vocab"))
        ranker = load_ranker(folder / "ranker", dataset.manifest.spec, config, params=params)
        if missing := sorted(set(tasks) - set(ranker.config.heads.tasks)):
            raise DataError(f"{folder}: not comparable, it has no task '{missing[0]}'")
        scores = _score(ranker, dataset, translation, config)
        for column, task in enumerate(ranker.config.heads.tasks):
            columns[f"label {task}"] = scores.labels_CK[:, column].numpy()
            columns[f"logit {name} {task}"] = scores.logits_CK[:, column].numpy()
        latency[name] = _milliseconds_per_request(ranker, dataset, translation, config)
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps({"tasks": tasks, "latency_ms": latency})})
    with (
        atomic_file(paths.out) as temporary,
        pa.OSFile(str(temporary), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    logger.info(
        "predict: %s candidates, %s", f"{len(table):,}", ", ".join(f"{n} {t:.1f} ms" for n, t in latency.items())
    )


def load_ranker(directory: Path, spec: FeatureSpec, config: EvaluateConfig, *, params: ModelConfig) -> Ranker:
    """A trained ranker with its own vocabulary sizes, computing in what params.yaml says.

    Raises:
        DataError: it is damaged, or its features mean something else than the dataset's.
    """
    checkpoint = load_checkpoint(directory)
    check_same_features(checkpoint.header.spec, spec, directory)
    computed = {name: getattr(params, name) for name in ("impl", "compute", "gemm")}
    model = checkpoint.header.model.model_copy(update=computed)
    ranker = Ranker(model, checkpoint.header.spec, device=device_of(config.device, "evaluate.device"))
    ranker.load_state(dict(checkpoint.tensors["dense"]), dict(checkpoint.tensors["tables"]))
    return ranker.eval()


def _score(ranker: Ranker, dataset: StreamsDataset, translation: Translation, config: EvaluateConfig) -> Scores:
    reader = TranslatedReader(dataset, ranker, translation, batch_size=config.batch_size)
    return score_candidates(ranker, reader, device_of(config.device, "evaluate.device"))


@torch.inference_mode()
def _milliseconds_per_request(
    ranker: Ranker, dataset: StreamsDataset, translation: Translation, config: EvaluateConfig
) -> float:
    """Median time of a request alone: its batch is ready, its scores are awaited."""
    device = device_of(config.device, "evaluate.device")
    times = []
    for _, batch in zip(
        range(LATENCY_REQUESTS), TranslatedReader(dataset, ranker, translation, batch_size=1), strict=False
    ):
        moved = batch.to(device)
        start = time.perf_counter()
        ranker(moved).logits_CK.cpu()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def _facts(dataset: StreamsDataset, batch_size: int) -> dict[str, np.ndarray]:
    """What is known of each candidate without a model."""
    spec = dataset.manifest.spec
    lengths = tuple(HISTORY_CAP if number == 0 else 0 for number in range(len(spec.streams)))
    item = [field.name for field in spec.item_fields].index("item")
    contexts = [field.name for field in spec.candidate_contexts]
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ("user_id", "request_id", "history", "cold", "surface")}
    for batch in Reader(dataset, split=EVALUATION, batch_size=batch_size, max_lengths=lengths):
        count_B = batch.candidates.offsets_B1.diff()
        for name, values_B in (
            ("user_id", batch.user_id_B),
            ("request_id", batch.request_id_B),
            ("history", batch.streams[0].offsets_B1.diff()),
        ):
            parts[name].append(values_B.repeat_interleave(count_B).numpy())
        items_C = batch.candidates.items_CF[:, item]
        parts["cold"].append((items_C == UNKNOWN).numpy())
        surface_C = batch.candidates.contexts_CX[:, contexts.index("surface")] if "surface" in contexts else 0 * items_C
        parts["surface"].append(surface_C.numpy())
    return {name: np.concatenate(values) for name, values in parts.items() if values}


def parse_models(texts: list[str]) -> dict[str, Path]:
    """`name=folder` arguments.

    Raises:
        DataError: an argument has another form.
    """
    models = {}
    for text in texts:
        name, separator, folder = text.partition("=")
        if not separator or not name.isidentifier():
            raise DataError(f"--model {text}: write name=folder")
        models[name] = Path(folder)
    return models


def main() -> None:
    """Command line; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.predict", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--vocab", type=Path, default=Path("data/vocab"))
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run_stage(lambda: predict(PredictPaths(args.params, args.streams, args.vocab, parse_models(args.model), args.out)))


if __name__ == "__main__":
    main()
