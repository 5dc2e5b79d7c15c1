"""Vocabularies: raw ids and categories to embedding rows. Append-only, so a later night never renumbers.

Row 0 is padding and stands for null, row 1 is out-of-vocabulary, keys follow from row 2 on.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import DataError
from features.files import read_json, write_json
from features.id_index import IdIndex
from features.schema import check_schema

PADDING, UNKNOWN, FIRST_KEY = 0, 1, 2
VOCABULARY_FILE = "vocabulary.json"
_INT16 = np.arange(1 << 16, dtype=np.uint16).view(np.int16)
_ID_FIELDS = ("user", "item", "surface")


def key_type(field: str) -> pa.DataType:
    """int64 for ids, string for categories."""
    return pa.int64() if field in _ID_FIELDS else pa.string()


def vocabulary_schema(field: str) -> pa.Schema:
    """`<field>.parquet`: the key, its row, and how often it was seen when it was added."""
    return pa.schema([pa.field("key", key_type(field)), pa.field("row", pa.int32()), pa.field("count", pa.int64())])


@dataclass(frozen=True)
class Vocabulary:
    """One field's keys; `keys[i]` has row i + 2.

    Attributes:
        field: name of the field.
        keys: int64 or string array without nulls.
        counts: (len(keys),) int64, training events with the key when it was added.
    """

    field: str
    keys: pa.Array
    counts: np.ndarray

    @property
    def size(self) -> int:
        """Rows of an embedding table, padding and out-of-vocabulary included."""
        return FIRST_KEY + len(self.keys)

    def lookup(self, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """(N,) int32 rows of raw values: null -> 0, unknown -> 1."""
        if pa.types.is_integer(self.keys.type):
            ids = (pc.fill_null(values, 0) if values.null_count else values).to_numpy(zero_copy_only=False)
            rows = self._rows_of(ids)
        else:
            position = pc.index_in(values.cast(self.keys.type), value_set=self.keys)
            rows = pc.fill_null(pc.add(position, FIRST_KEY), UNKNOWN).to_numpy(zero_copy_only=False).astype(np.int32)
        if values.null_count:
            rows[values.is_null().to_numpy(zero_copy_only=False)] = PADDING
        return rows

    def has(self, values: pa.Array) -> np.ndarray:
        """(N,) bool which of some distinct values, none of them null, are keys; makes no index."""
        if pa.types.is_integer(self.keys.type):
            return np.isin(values.to_numpy(), self.keys.to_numpy(), assume_unique=True, kind="sort")
        return pc.is_in(values.cast(self.keys.type), value_set=self.keys).to_numpy(zero_copy_only=False)

    def _rows_of(self, ids: np.ndarray) -> np.ndarray:
        if ids.dtype == np.int16 and len(ids) > _INT16.size:
            return self._rows_of(_INT16).take(ids.view(np.uint16))
        return self._index.find(ids.astype(np.int64, copy=False)) + np.int32(FIRST_KEY)  # -1 becomes UNKNOWN

    @cached_property
    def _index(self) -> IdIndex:
        return IdIndex.of(self.keys.to_numpy())

    def to_table(self) -> pa.Table:
        """Schema `vocabulary_schema`."""
        rows = np.arange(FIRST_KEY, self.size, dtype=np.int32)
        return pa.table([self.keys, rows, self.counts], schema=vocabulary_schema(self.field))

    @cached_property
    def digest(self) -> str:
        """Hex digest of the keys in their order."""
        if pa.types.is_integer(self.keys.type):
            content = self.keys.to_numpy().tobytes()
        else:
            content = "\0".join(self.keys.to_pylist()).encode()
        return hashlib.sha256(str(self.keys.type).encode() + content).hexdigest()


def extend(base: Vocabulary | None, field: str, counts: pa.Table, *, min_count: int) -> Vocabulary:
    """Appends the keys seen at least `min_count` times, ascending, after those of `base`.

    Args:
        base: an earlier vocabulary of the field, whose rows stay.
        field: name of the field.
        counts: columns `key` (no nulls, no repeats) and `count`.
        min_count: rarer keys get no row.
    """
    keys = counts.column("key").cast(key_type(field))
    fresh = pc.greater_equal(counts.column("count"), min_count)
    if base is not None and len(base.keys):
        fresh = pc.and_(fresh, pc.invert(pc.is_in(keys, value_set=base.keys)))
    added = pa.table({"key": keys, "count": counts.column("count")}).filter(fresh).sort_by("key").combine_chunks()
    new_keys = added.column("key").combine_chunks()
    new_counts = added.column("count").to_numpy().astype(np.int64)
    if base is None:
        return Vocabulary(field, new_keys, new_counts)
    return Vocabulary(field, pa.concat_arrays([base.keys, new_keys]), np.concatenate([base.counts, new_counts]))


@dataclass(frozen=True)
class VocabularySet:
    """All fields of a dataset."""

    vocabularies: tuple[Vocabulary, ...]

    def field(self, name: str) -> Vocabulary:
        """The vocabulary of a field.

        Raises:
            DataError: there is none.
        """
        for vocabulary in self.vocabularies:
            if vocabulary.field == name:
                return vocabulary
        raise DataError(f"vocabulary has no field '{name}'; run the vocab stage again")

    @property
    def sizes(self) -> dict[str, int]:
        """Rows by field."""
        return {vocabulary.field: vocabulary.size for vocabulary in self.vocabularies}

    def index(self) -> None:
        """Makes the fields' indices now and not at the first lookup, which all threads would wait for."""
        for vocabulary in self.vocabularies:
            if pa.types.is_integer(vocabulary.keys.type):
                _ = vocabulary._index

    @cached_property
    def hash(self) -> str:
        """Hex digest of all fields' keys and rows; checkpoints record it."""
        text = "\n".join(f"{vocabulary.field} {vocabulary.digest}" for vocabulary in self.vocabularies)
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, directory: Path, base: str | None = None) -> None:
        """Writes one Parquet file per field, then vocabulary.json; `base` is the hash of what they were appended to."""
        for vocabulary in self.vocabularies:
            # Keys are distinct, so a dictionary of them would only be tried and dropped.
            path = directory / f"{vocabulary.field}.parquet"
            pq.write_table(vocabulary.to_table(), path, compression="zstd", use_dictionary=False)
        document = {"hash": self.hash, "sizes": self.sizes, "fields": list(self.sizes), "base": base}
        write_json(directory / VOCABULARY_FILE, document)

    @classmethod
    def load(cls, directory: Path) -> VocabularySet:
        """Reads a vocabulary directory.

        Raises:
            DataError: a file is missing or damaged, or the content is not what vocabulary.json says.
        """
        document = read_json(directory / VOCABULARY_FILE)
        loaded = cls(tuple(_load_field(directory / f"{field}.parquet", field) for field in document["fields"]))
        if loaded.hash != document["hash"]:
            raise DataError(
                f"{directory / VOCABULARY_FILE}: hash does not match the field files; run the vocab stage again"
            )
        return loaded


def _load_field(path: Path, field: str) -> Vocabulary:
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from None
    check_schema(table.schema, vocabulary_schema(field), str(path))
    rows = table.column("row").to_numpy()
    if not np.array_equal(rows, np.arange(FIRST_KEY, FIRST_KEY + len(rows))):
        raise DataError(f"{path}: column 'row' does not count up from {FIRST_KEY}")
    return Vocabulary(field, table.column("key").combine_chunks(), table.column("count").to_numpy())
