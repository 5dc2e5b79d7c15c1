"""A bundle is whole, is what it says, and says what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from features.dataset import open_dataset
from features.errors import DataError
from features.files import read_json, write_json
from model.scorer import Scorer
from model.serving.bundle import CARD, MANIFEST, METRICS, TABLES, open_bundle, publish


@pytest.fixture
def copied(workspace, tmp_path) -> Path:
    """A bundle that a test may damage."""
    source = open_bundle(workspace.bundle).path
    return Path(shutil.copytree(source, tmp_path / "copy"))


def test_a_bundle_is_found_by_its_folder_and_named_by_its_content(workspace, copied):
    bundle = open_bundle(workspace.bundle)
    assert bundle.path.name == bundle.manifest.name
    assert open_bundle(copied, expected_name=bundle.manifest.name).manifest == bundle.manifest
    with pytest.raises(DataError, match=f"is bundle {bundle.manifest.name}, 00ff was asked for"):
        Scorer.load(copied, expected_name="00ff")


def test_every_file_is_listed_and_none_is_pickled(copied):
    files = {path.relative_to(copied).as_posix() for path in copied.rglob("*") if path.is_file()}
    assert files == {*open_bundle(copied).manifest.files, MANIFEST}
    assert {Path(name).suffix for name in files} == {".json", ".safetensors", ".parquet", ".yaml", ".md"}


def test_the_card_and_the_metrics_do_not_name_a_bundle_but_weights_do(copied):
    bundle = open_bundle(copied)
    (copied / CARD).write_text("another card")
    write_json(copied / METRICS, {})
    assert publish(copied, bundle.contents).name == bundle.manifest.name
    other = bundle.contents.model_copy(update={"timezone": "UTC"})
    assert publish(copied, other).name != bundle.manifest.name


@pytest.mark.parametrize("name", [TABLES, "weights.safetensors", "vocabulary/item.parquet", "items.parquet", CARD])
def test_a_flipped_bit_is_refused_by_name(copied, name):
    content = bytearray((copied / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: has another sha256; the bundle is damaged"):
        Scorer.load(copied)


def test_a_cut_a_missing_and_a_strange_file_are_refused_by_name(copied):
    tables = (copied / TABLES).read_bytes()
    (copied / TABLES).write_bytes(tables[:-1])
    with pytest.raises(DataError, match=rf"{TABLES}: has {len(tables) - 1} bytes instead of {len(tables)}"):
        open_bundle(copied)
    (copied / TABLES).unlink()
    with pytest.raises(DataError, match=f"{TABLES}: the manifest lists it, but it is missing"):
        open_bundle(copied)
    (copied / TABLES).write_bytes(tables)
    (copied / "model.pkl").write_bytes(b"")
    with pytest.raises(DataError, match=r"model\.pkl: the manifest does not list it"):
        open_bundle(copied)


def test_another_version_and_a_manifest_that_was_edited_are_refused(copied):
    document = read_json(copied / MANIFEST)
    write_json(copied / MANIFEST, document | {"version": 2})
    with pytest.raises(DataError, match="bundle version 2, this code reads version 1"):
        open_bundle(copied)
    write_json(copied / MANIFEST, document | {"name": "0" * 16})
    with pytest.raises(DataError, match="calls itself 0000000000000000, its content is"):
        open_bundle(copied)
    edited = json.loads(json.dumps(document))
    edited["contents"]["spec"]["intensity_size"] += 1
    write_json(copied / MANIFEST, edited)
    with pytest.raises(DataError, match="its content is"):
        open_bundle(copied)


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path, copied):
    (copied / MANIFEST).unlink()
    with pytest.raises(DataError, match=r"no bundle; manifest\.json is written last"):
        open_bundle(copied)
    with pytest.raises(DataError, match="no bundle"):
        open_bundle(tmp_path / "nowhere")


def test_two_bundles_in_a_folder_must_be_told_apart(workspace, tmp_path):
    source = open_bundle(workspace.bundle).path
    for name in ("one", "two"):
        shutil.copytree(source, tmp_path / "both" / name)
    with pytest.raises(DataError, match="2 bundles, name one of them"):
        open_bundle(tmp_path / "both")
    assert open_bundle(tmp_path / "both" / "two").manifest


def test_another_vocabulary_is_refused_by_its_hash(workspace, copied):
    bundle = open_bundle(copied)
    contents = bundle.contents.model_copy(update={"vocabulary_hash": "f" * 64})
    publish(copied, contents)
    other = open_bundle(copied)
    with pytest.raises(DataError, match="the model was trained with ffffffffffff"):
        other.vocabularies()
    with pytest.raises(DataError, match=r"vocabulary \w{12}, bundle \w{16} was trained with ffffffffffff"):
        other.check_dataset(open_dataset(workspace.streams))
