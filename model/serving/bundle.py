"""Bundles: one directory with everything that scoring needs, named by its content, nothing pickled in it.

    manifest.json         written last: version, name, hashes, configuration, and size and sha256 of every other file
    weights.safetensors   dense parameters
    tables.safetensors    embedding rows as they are served
    params.yaml           the settings that the model was made with
    vocabulary/           raw ids to rows
    items.parquet         categories of every known item, as rows
    metrics.json          what training and evaluation measured
    MODEL_CARD.md         the same for people

The name is a digest of all that decides a score, so equal names score alike; metrics and the card are not in it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from features.config import Closed, describe
from features.dataset import StreamsDataset
from features.errors import DataError
from features.files import read_json, write_json
from features.manifest import FileEntry, file_entry, schemas_of
from features.schema import schema_hash
from features.spec import FeatureSpec
from features.vocabulary import VocabularySet
from model.config import ModelConfig
from model.serving.quantize import TableFormat

BUNDLE_VERSION = 1
MANIFEST = "manifest.json"
WEIGHTS, TABLES, PARAMS = "weights.safetensors", "tables.safetensors", "params.yaml"
VOCABULARY, ITEMS, METRICS, CARD = "vocabulary", "items.parquet", "metrics.json", "MODEL_CARD.md"
_ABOUT = (METRICS, CARD)
_NAME_DIGITS = 16


class Contents(Closed):
    """What a bundle is made of beside its files.

    tables: how the embedding rows are stored.
    model, spec: the model and what it reads.
    schema_hash: of the streams that it reads.
    vocabulary_hash: of the ids that it knows.
    timezone: local hours and weekdays of requests are those.
    cut_ms: it was trained on what came before.
    run_hash, steps: the training run.
    """

    tables: TableFormat
    model: ModelConfig
    spec: FeatureSpec
    schema_hash: str
    vocabulary_hash: str
    timezone: str
    cut_ms: int
    run_hash: str
    steps: int


class BundleManifest(Closed):
    """manifest.json."""

    version: int
    name: str
    contents: Contents
    files: dict[str, FileEntry]

    @classmethod
    def of(cls, contents: Contents, files: dict[str, FileEntry]) -> Self:
        """The manifest of these contents and files."""
        return cls(version=BUNDLE_VERSION, name=_name(contents, files), contents=contents, files=files)


def _name(contents: Contents, files: dict[str, FileEntry]) -> str:
    decisive = {
        "version": BUNDLE_VERSION,
        "contents": contents.model_dump(mode="json"),
        "files": {name: entry.sha256 for name, entry in files.items() if name not in _ABOUT},
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:_NAME_DIGITS]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files were checked."""

    path: Path
    manifest: BundleManifest

    @property
    def contents(self) -> Contents:
        """What it is made of."""
        return self.manifest.contents

    def tensors(self, name: str) -> dict[str, Tensor]:
        """A file of tensors, on the CPU."""
        try:
            return load_file(self.path / name)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{self.path / name}: not a safetensors file: {error}") from None

    def vocabularies(self) -> VocabularySet:
        """Raw ids to rows.

        Raises:
            DataError: it is not the vocabulary that the model was trained with.
        """
        loaded = VocabularySet.load(self.path / VOCABULARY)
        if loaded.hash != self.contents.vocabulary_hash:
            raise DataError(
                f"{self.path / VOCABULARY}: vocabulary {loaded.hash[:12]}, "
                f"the model was trained with {self.contents.vocabulary_hash[:12]}; export again"
            )
        return loaded

    def check_dataset(self, dataset: StreamsDataset) -> None:
        """Refuses streams whose codes mean something else than they did in training.

        Raises:
            DataError: names the dataset, the bundle and what differs.
        """
        for what, ours, theirs in (
            ("vocabulary", self.contents.vocabulary_hash, dataset.manifest.vocabulary_hash),
            ("schema", self.contents.schema_hash, dataset.manifest.schema_hash),
        ):
            if ours != theirs:
                raise DataError(
                    f"{dataset.path}: {what} {theirs[:12]}, bundle {self.manifest.name} was trained with {ours[:12]}; "
                    "build the streams with the bundle's, or train again"
                )
        if dataset.manifest.spec != self.contents.spec:
            raise DataError(f"{dataset.path}: its features are not those of bundle {self.manifest.name}; train again")


def publish(directory: Path, contents: Contents) -> BundleManifest:
    """Writes the manifest over all files of a directory; call it last, and again after a change.

    The directory is then a bundle; its caller gives it the manifest's name.
    """
    paths = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / MANIFEST)
    files = {path.relative_to(directory).as_posix(): file_entry(path) for path in paths}
    manifest = BundleManifest.of(contents, files)
    write_json(directory / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def open_bundle(path: Path, *, expected_name: str | None = None) -> Bundle:
    """Opens a bundle, or the only one in a folder of bundles, and checks every file of it.

    Args:
        path: a bundle, or the folder that the stage `export` writes.
        expected_name: refuse every other bundle.

    Raises:
        DataError: names the file that is missing, damaged, unlisted, or of another version; or the wrong name.
    """
    path = _locate(Path(path))
    manifest = _read_manifest(path / MANIFEST)
    for name, entry in manifest.files.items():
        _check_file(path / name, entry)
    found = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    for name in sorted(found - manifest.files.keys() - {MANIFEST}):
        raise DataError(f"{path / name}: the manifest does not list it; remove it or export again")
    name = _name(manifest.contents, manifest.files)
    if name != manifest.name:
        raise DataError(f"{path / MANIFEST}: calls itself {manifest.name}, its content is {name}; export again")
    if expected_name not in (None, name):
        raise DataError(f"{path}: is bundle {name}, {expected_name} was asked for")
    return Bundle(path, manifest)


def _locate(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path
    found = sorted(entry.parent for entry in path.glob(f"*/{MANIFEST}"))
    if len(found) != 1:
        problem = "no bundle" if not found else f"{len(found)} bundles, name one of them"
        raise DataError(f"{path}: {problem}; {MANIFEST} is written last, run the export stage")
    return found[0]


def _read_manifest(path: Path) -> BundleManifest:
    document = read_json(path)
    version = document.get("version") if isinstance(document, dict) else None
    if version != BUNDLE_VERSION:
        raise DataError(f"{path}: bundle version {version}, this code reads version {BUNDLE_VERSION}")
    try:
        manifest = BundleManifest.model_validate(document)
    except ValidationError as error:
        raise DataError(describe(error, path, "manifest")) from None
    if manifest.contents.schema_hash != schema_hash(*schemas_of(manifest.contents.spec)):
        raise DataError(f"{path}: schema_hash is not that of this code's schema; export again with this version")
    return manifest


def _check_file(path: Path, expected: FileEntry) -> None:
    if not path.is_file():
        raise DataError(f"{path}: the manifest lists it, but it is missing; the bundle is incomplete, copy it again")
    found = file_entry(path)
    if found != expected:
        what = f"{found.bytes} bytes instead of {expected.bytes}" if found.bytes != expected.bytes else "another sha256"
        raise DataError(f"{path}: has {what}; the bundle is damaged, copy or export it again")
