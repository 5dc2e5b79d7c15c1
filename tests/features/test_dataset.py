from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.config import DataConfig, FeaturesConfig
from features.dataset import open_dataset
from features.errors import DataError
from features.manifest import file_entry, params_hash, read_manifest, schemas_of
from features.schema import requests_schema, users_schema

USERS = "shard-00001-of-00002/users.arrow"
PARAMS = Path(__file__).parents[2] / "params.yaml"


def edit_manifest(directory: Path, **changes: object) -> None:
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def claim(directory: Path, name: str) -> None:
    """Makes the manifest agree with a file as it is now."""
    shard, file = name.split("/")
    document = json.loads((directory / "manifest.json").read_text())
    for entry in document["shards"]:
        if entry["name"] == shard:
            entry["files"][file] = file_entry(directory / name).model_dump()
    edit_manifest(directory, **document)


def rewrite(directory: Path, name: str, change) -> None:
    with pa.OSFile(str(directory / name)) as source:
        table = change(pa.ipc.open_file(source).read_all())
    with pa.OSFile(str(directory / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    claim(directory, name)


def test_columns_are_those_written(dataset, build_shards, random_events):
    opened = open_dataset(dataset)
    for shard, tables in zip(opened.shards, build_shards(random_events(0, 200), 2), strict=True):
        assert shard.users.num_rows == tables.users.num_rows > 0
        assert shard.users.column("user_id").tolist() == tables.users.column("user_id").to_pylist()
        tags = shard.users.list("consumption.tag")
        assert [tags.row(index).tolist() for index in range(len(tags))] == tables.users["consumption.tag"].to_pylist()
        assert shard.requests.list("candidate.item_id").values.dtype == np.int64
        assert shard.requests.column("split").dtype == np.uint8
        assert not shard.users.column("user").flags.writeable


def test_a_dataset_travels_to_workers_without_its_maps(dataset):
    opened = open_dataset(dataset)
    again = pickle.loads(pickle.dumps(opened))
    assert "table" not in again.shards[0].users.__dict__
    assert again.shards[0].users.column("user").tolist() == opened.shards[0].users.column("user").tolist()
    assert again.manifest == opened.manifest


def test_unknown_columns_are_named(dataset):
    with pytest.raises(DataError, match=r"users\.arrow: column 'nope' is missing"):
        open_dataset(dataset).shards[0].users.column("nope")


def test_a_directory_without_a_manifest_is_refused(dataset):
    (dataset / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: missing, so .* is not a finished dataset"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format_version": 1}, "format_version is 1, this code reads 2"),
        ({"order": "oldest_first"}, "order is 'oldest_first', this code reads 'newest_first'"),
        ({"schema_hash": "0"}, "schema_hash is not that of this code's schema"),
        ({"cut_ms": "soon"}, "manifest.cut_ms: Input should be a valid integer"),
        ({"surprise": 1}, "manifest.surprise: unknown key"),
    ],
)
def test_other_manifests_are_refused(dataset, changes, problem):
    edit_manifest(dataset, **changes)
    with pytest.raises(DataError, match=rf"manifest\.json: {problem}"):
        read_manifest(dataset)


@pytest.mark.parametrize("content", ["", "[]", '{"format_version": 1'])
def test_damaged_manifests_are_refused(dataset, content):
    (dataset / "manifest.json").write_text(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        open_dataset(dataset)


@pytest.mark.parametrize("verify", [True, False])
def test_missing_files_are_named(dataset, verify):
    (dataset / USERS).unlink()
    with pytest.raises(DataError, match=rf"{USERS}: the manifest lists it, but it is missing"):
        open_dataset(dataset, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_truncated_files_are_named(dataset, verify):
    content = (dataset / USERS).read_bytes()
    (dataset / USERS).write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{USERS}: has {len(content) - 1} bytes, .* truncated or replaced"):
        open_dataset(dataset, verify=verify)


def test_a_flipped_byte_is_found(dataset):
    content = bytearray((dataset / USERS).read_bytes())
    content[len(content) // 2] ^= 1
    (dataset / USERS).write_bytes(content)
    with pytest.raises(DataError, match=f"{USERS}: sha256 differs"):
        open_dataset(dataset)


def test_a_file_that_is_not_arrow_is_named(dataset):
    (dataset / USERS).write_bytes(b"not arrow at all")
    claim(dataset, USERS)
    with pytest.raises(DataError, match=f"{USERS}: cannot be read"):
        open_dataset(dataset)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda table: table.drop_columns(["user"]), "column 'user' is missing"),
        (lambda table: table.append_column("more", table.column("user")), "unexpected column 'more'"),
        (
            lambda table: table.set_column(1, "user", table.column("user").cast(pa.int64())),
            "column 'user' has type int64, expected int32",
        ),
        (lambda table: table.slice(1), "rows, the manifest says"),
    ],
)
def test_files_of_another_schema_are_refused(dataset, change, problem):
    rewrite(dataset, USERS, change)
    with pytest.raises(DataError, match=f"{USERS}: .*{problem}"):
        open_dataset(dataset)


def test_the_spec_gives_the_schemas_of_the_settings(spec, features):
    users, requests = schemas_of(spec)
    assert users.equals(users_schema(features))
    assert requests.equals(requests_schema(features))


def test_params_hash_sees_settings_but_not_where_the_logs_lie():
    data, features = DataConfig.load(PARAMS), FeaturesConfig.load(PARAMS)
    same = params_hash(data.model_copy(update={"path": Path("elsewhere")}), features)
    assert same == params_hash(data, features)
    assert params_hash(data.model_copy(update={"eval_days": 9}), features) != same
    assert params_hash(data, features.model_copy(update={"user_categories": ()})) != same
