"""A small contract, event tables made by hand, and a dataset written without any pipeline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from features.config import FeaturesConfig
from features.encode import context_fields, intensity_size
from features.fingerprint import fingerprint
from features.hashing import shard_of
from features.manifest import (
    REQUESTS_FILE,
    USERS_FILE,
    Manifest,
    ShardEntry,
    file_entry,
    schemas_of,
    shard_name,
    write_manifest,
)
from features.schema import EVENTS, FORMAT_VERSION, ORDER, schema_hash, side_table_schema
from features.shard import ShardEncoder, ShardTables, build_shard
from features.side import encode_side_table
from features.spec import CategoricalField, FeatureSpec
from features.vocabulary import Vocabulary, VocabularySet, key_type

NUM_IDS = 8
CUT_MS = 5_000
MakeEvents = Callable[..., pa.Table]


def vocabulary_of(field: str, keys: Sequence[Any]) -> Vocabulary:
    return Vocabulary(field, pa.array(keys, key_type(field)), np.ones(len(keys), np.int64))


@pytest.fixture(scope="session")
def features() -> FeaturesConfig:
    return FeaturesConfig.model_validate(
        {
            "actions": ["click", "like", "hate"],
            "streams": {"consumption": "all", "interaction": ["like", "hate"]},
            "intensity": {"watch_ratio_edges": [0.5, 1.0], "watch_ms_edges": [1000, 5000], "value_edges": [2.0]},
            "token_contexts": ["surface", "hour", "weekday", "duration", "gap"],
            "candidate_contexts": ["surface", "hour", "weekday", "duration"],
            "item_categories": ["author", "tag"],
            "user_categories": ["degree"],
            "requests": {"gap_ms": 100, "max_candidates": 3},
            "vocabulary": {"min_count": 1, "base": None},
        }
    )


@pytest.fixture(scope="session")
def make_events() -> MakeEvents:
    """Columns given as sequences, the others at a default; `source_order` counts the rows."""

    def make(user_id: Sequence[int], timestamp_ms: Sequence[int], **columns: Sequence[Any]) -> pa.Table:
        num_rows = len(user_id)
        defaults: dict[str, Sequence[Any]] = {
            "item_id": [0] * num_rows,
            "action_mask": [0] * num_rows,
            "source_order": range(num_rows),
        }
        columns = {**defaults, **columns, "user_id": user_id, "timestamp_ms": timestamp_ms}
        return pa.table(
            [pa.array(list(columns.get(field.name, [None] * num_rows)), field.type) for field in EVENTS], schema=EVENTS
        )

    return make


def replace_values(table: pa.Table, name: str, values: np.ndarray) -> pa.Table:
    """The table with other values in a plain column, a list column or a field of the candidates."""
    owner, _, part = name.partition(".")
    column = name if name in table.column_names else owner
    field = table.schema.field(column)
    array: pa.Array = pa.array(values)
    if pa.types.is_large_list(field.type):
        old = table.column(column).combine_chunks()
        if column != name:
            fields = field.type.value_type.fields
            children = [array if f.name == part else old.values.field(f.name) for f in fields]
            array = pa.StructArray.from_arrays(children, fields=fields)
        array = pa.LargeListArray.from_arrays(old.offsets, array, type=field.type)
    return table.set_column(table.column_names.index(column), field, array)


def flat_names(schema: pa.Schema) -> list[str]:
    """Names of all columns, the candidates' fields among them."""
    names = []
    for field in schema:
        structs = pa.types.is_large_list(field.type) and pa.types.is_struct(field.type.value_type)
        names += [f"{field.name}.{f.name}" for f in field.type.value_type.fields] if structs else [field.name]
    return names


@pytest.fixture(scope="session")
def with_values() -> Callable[[pa.Table, str, np.ndarray], pa.Table]:
    """The function `replace_values`."""
    return replace_values


@pytest.fixture(scope="session")
def column_names() -> Callable[[pa.Schema], list[str]]:
    """The function `flat_names`."""
    return flat_names


@pytest.fixture(scope="session")
def random_events(make_events: MakeEvents) -> Callable[[int, int], pa.Table]:
    """(seed, rows) -> events of few users and times, so that pages, duplicates and both splits occur."""

    def make(seed: int, num_rows: int) -> pa.Table:
        rng = np.random.default_rng(seed)
        return make_events(
            rng.integers(0, NUM_IDS, num_rows).tolist(),
            (rng.integers(0, 500, num_rows) * 20).tolist(),
            item_id=rng.integers(0, NUM_IDS, num_rows).tolist(),
            action_mask=rng.choice([0, 0, 1, 2, 5], num_rows).tolist(),
            watch_ms=[None if x < 0 else x for x in rng.integers(-2000, 9000, num_rows).tolist()],
            duration_ms=[None if x < 0 else x for x in rng.integers(-2000, 9000, num_rows).tolist()],
            surface=[None if x < 0 else x for x in rng.integers(-1, 4, num_rows).tolist()],
            source_order=rng.permutation(num_rows).tolist(),
        )

    return make


@pytest.fixture(scope="session")
def encoder(features: FeaturesConfig) -> ShardEncoder:
    """Item and user 7 are in no side table; item and user 6 are out of vocabulary."""
    vocabularies = VocabularySet(
        (
            vocabulary_of("user", range(6)),
            vocabulary_of("item", range(6)),
            vocabulary_of("surface", [0, 1, 2]),
            vocabulary_of("author", ["a0", "a1"]),
            vocabulary_of("tag", ["t0", "t1", "t2"]),
            vocabulary_of("degree", ["high", "low"]),
        )
    )
    ids = range(NUM_IDS - 1)
    items = pa.table(
        [list(ids), [f"a{i % 3}" for i in ids], [None if i == 0 else f"t{i % 3}" for i in ids]],
        schema=side_table_schema("item_id", features.item_categories),
    )
    users = pa.table(
        [list(ids), ["high" if i % 2 else "low" for i in ids]],
        schema=side_table_schema("user_id", features.user_categories),
    )
    return ShardEncoder(
        features=features,
        timezone="Asia/Shanghai",
        cut_ms=CUT_MS,
        vocabularies=vocabularies,
        items=encode_side_table(items, "item_id", features.item_categories, vocabularies),
        users=encode_side_table(users, "user_id", features.user_categories, vocabularies),
    )


@pytest.fixture(scope="session")
def spec(features: FeaturesConfig, encoder: ShardEncoder) -> FeatureSpec:
    sizes = encoder.vocabularies.sizes

    def fields(names: tuple[str, ...]) -> tuple[CategoricalField, ...]:
        return tuple(CategoricalField(name=name, size=sizes[name]) for name in names)

    return FeatureSpec(
        actions=features.actions,
        streams=tuple(features.streams),
        item_fields=fields(("item", *features.item_categories)),
        user_fields=fields(("user", *features.user_categories)),
        token_contexts=context_fields(features.token_contexts, sizes["surface"]),
        candidate_contexts=context_fields(features.candidate_contexts, sizes["surface"]),
        intensity_size=intensity_size(features.intensity),
    )


@pytest.fixture(scope="session")
def build_shards(encoder: ShardEncoder) -> Callable[[pa.Table, int], list[ShardTables]]:
    def build(events: pa.Table, num_shards: int) -> list[ShardTables]:
        shards = shard_of(events.column("user_id").to_numpy(), num_shards)
        return [build_shard(events.filter(pa.array(shards == shard)), encoder) for shard in range(num_shards)]

    return build


@pytest.fixture
def dataset(
    tmp_path: Path,
    spec: FeatureSpec,
    encoder: ShardEncoder,
    build_shards: Callable[[pa.Table, int], list[ShardTables]],
    random_events: Callable[[int, int], pa.Table],
) -> Path:
    """A dataset of two shards, written file by file."""
    directory = tmp_path / "streams"
    entries = []
    for index, tables in enumerate(build_shards(random_events(0, 200), 2)):
        name = shard_name(index, 2)
        (directory / name).mkdir(parents=True)
        for file, table in ((USERS_FILE, tables.users), (REQUESTS_FILE, tables.requests)):
            with pa.OSFile(str(directory / name / file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table)
        entries.append(
            ShardEntry(
                name=name,
                files={file: file_entry(directory / name / file) for file in (USERS_FILE, REQUESTS_FILE)},
                users=tables.users.num_rows,
                requests=tables.requests.num_rows,
                candidates=tables.num_events,
                events=tables.num_events,
                duplicates=tables.num_duplicates,
                stream_events={},
            )
        )
    write_manifest(
        directory,
        Manifest(
            format_version=FORMAT_VERSION,
            order=ORDER,
            schema_hash=schema_hash(*schemas_of(spec)),
            params_hash="p",
            vocabulary_hash=encoder.vocabularies.hash,
            cut_ms=CUT_MS,
            spec=spec,
            shards=tuple(entries),
            content_checksum=fingerprint(tables.users, tables.requests).hex,
        ),
    )
    return directory
