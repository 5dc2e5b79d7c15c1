"""A small trained model with its vocabulary, streams and bundle, made once for all tests of this folder."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.dataset import open_dataset
from features.encode import encode_hour
from features.hashing import shard_of
from features.manifest import read_manifest, write_manifest
from features.vocabulary import FIRST_KEY, Vocabulary, VocabularySet, key_type
from model.evaluate import EvaluatePaths, evaluate
from model.export import ExportPaths, export
from model.train import TrainPaths, train

TIMEZONE = "Asia/Shanghai"
UNKNOWN_ITEM = 9_999
FIRST_ITEM, FIRST_SURFACE = 500, 10
NUM_SHARDS = 3


@dataclass(frozen=True)
class Workspace:
    """Everything that a run leaves before it scores; `bundle` is the folder that export wrote."""

    root: Path
    content: Any

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def streams(self) -> Path:
        return self.root / "streams"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    def export_paths(self, out: Path) -> ExportPaths:
        root = self.root
        return ExportPaths(
            params=self.params,
            events=root / "events",
            vocab=root / "vocab",
            streams=self.streams,
            model=root / "ranker",
            metrics=root / "metrics",
            out=out,
        )


def raw_item(code: int) -> int:
    """The raw id behind a row of the item vocabulary."""
    return UNKNOWN_ITEM if code < FIRST_KEY else FIRST_ITEM + code


def author_of(code: int) -> int:
    """Each item has one author, out of vocabulary or not."""
    return 1 + code % 11


def ids_by_shard(count: int) -> list[int]:
    """Ascending raw ids of which the n-th belongs to shard n % NUM_SHARDS, where the dataset's writer puts it."""
    ids, candidate = [], 1000
    while len(ids) < count:
        if shard_of(np.array([candidate]), NUM_SHARDS)[0] == len(ids) % NUM_SHARDS:
            ids.append(candidate)
        candidate += 1
    return ids


def agree_with_the_vocabulary(content: Any) -> None:
    """Makes codes of users, items, surfaces and hours those of raw ids and times."""
    for number, (user, user_id) in enumerate(zip(content.users, ids_by_shard(len(content.users)), strict=True)):
        user["user_id"] = user_id
        user["user"] = FIRST_KEY + number if number < 28 else 1
        for stream in content.spec.streams:
            for event in user[stream]:
                event["author"] = author_of(event["item"])
    for request in content.requests:
        user = content.users[request["user_row"]]
        for stream in content.spec.streams:
            older = [event["timestamp_ms"] < request["request_ms"] for event in user[stream]]
            request[f"{stream}_start"] = len(older) - sum(older)
        for event in request["candidates"]:
            event["item_id"] = raw_item(event["item"])
            event["author"] = author_of(event["item"])
            event["hour"] = int(encode_hour(np.array([request["request_ms"]]), TIMEZONE)[0])


def vocabulary(field: str, keys: list[Any]) -> Vocabulary:
    return Vocabulary(field, pa.array(keys, key_type(field)), np.ones(len(keys), np.int64))


def write_ids(root: Path, spec: Any) -> str:
    """Vocabulary and ITEMS; the vocabulary's hash."""
    sizes = {f.name: f.size for f in (*spec.item_fields, *spec.user_fields)}
    author_keys = [f"author {row}" for row in range(FIRST_KEY, sizes["author"])]
    vocabularies = VocabularySet(
        (
            vocabulary("user", ids_by_shard(sizes["user"] - FIRST_KEY)),
            vocabulary("item", [raw_item(row) for row in range(FIRST_KEY, sizes["item"])]),
            vocabulary("surface", [FIRST_SURFACE + row for row in range(FIRST_KEY, 4)]),
            vocabulary("author", author_keys),
            vocabulary("degree", [f"degree {row}" for row in range(FIRST_KEY, sizes["degree"])]),
        )
    )
    (root / "vocab").mkdir()
    vocabularies.save(root / "vocab")
    codes = [1, *range(FIRST_KEY, sizes["item"])]
    names = ["unheard of", *author_keys]
    items = pa.table(
        {"item_id": [raw_item(code) for code in codes], "author": [names[author_of(code) - 1] for code in codes]},
        schema=pa.schema([pa.field("item_id", pa.int64(), nullable=False), pa.field("author", pa.string())]),
    )
    (root / "events").mkdir()
    pq.write_table(items, root / "events" / "items.parquet")
    return vocabularies.hash


@pytest.fixture(scope="session")
def workspace(tmp_path_factory, make_content, write_dataset, write_params, write_validation) -> Workspace:
    """Trained, evaluated and exported with fp32 rows, so that scores can be compared to rounding."""
    root = tmp_path_factory.mktemp("serving")
    content = make_content(seed=3, num_users=40)
    random.Random(0).shuffle(content.requests)
    content.requests.sort(key=lambda request: request["user_row"])
    agree_with_the_vocabulary(content)
    write_dataset(root / "streams", content, NUM_SHARDS)
    found = write_ids(root, content.spec)
    manifest = read_manifest(root / "streams")
    write_manifest(root / "streams", manifest.model_copy(update={"vocabulary_hash": found}))
    params = write_params(
        root / "params.yaml",
        export={"embeddings": "fp32", "small_rows": 20, "parity_requests": 20},
        score={"tokens_per_batch": 60, "micro_batch_size": 3},
    )
    validation = write_validation(root / "validation.json")
    train(TrainPaths(params, root / "streams", validation, root / "ranker", root / "metrics"))
    evaluate(EvaluatePaths(params, root / "streams", root / "ranker", root / "metrics"))
    made = Workspace(root, content)
    export(made.export_paths(made.bundle))
    assert open_dataset(root / "streams").manifest.vocabulary_hash == found
    return made
