"""Vocabularies never renumber a key, and lookups tell padding, unknown and known keys apart."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.vocabulary import (
    FIRST_KEY,
    PADDING,
    UNKNOWN,
    VOCABULARY_FILE,
    Vocabulary,
    VocabularySet,
    extend,
    vocabulary_schema,
)

Counts = dict[int, int] | dict[str, int]

ids = st.integers(0, 30) | st.integers(0, 2**53)
texts = st.text(max_size=3)
id_counts = st.dictionaries(ids, st.integers(1, 5), max_size=20)
text_counts = st.dictionaries(texts, st.integers(1, 5), max_size=20)
nights = st.one_of(
    st.tuples(st.just("item"), st.lists(id_counts, min_size=1, max_size=4)),
    st.tuples(st.just("author"), st.lists(text_counts, min_size=1, max_size=4)),
)


def table(field: str, counts: Counts) -> pa.Table:
    key_type = pa.int64() if field == "item" else pa.string()
    return pa.table({"key": pa.array(list(counts), key_type), "count": pa.array(list(counts.values()), pa.int64())})


def build(field: str, nights: list[Counts], min_count: int = 1) -> list[Vocabulary]:
    vocabularies: list[Vocabulary] = []
    for counts in nights:
        base = vocabularies[-1] if vocabularies else None
        vocabularies.append(extend(base, field, table(field, counts), min_count=min_count))
    return vocabularies


@given(nights, st.integers(1, 4))
def test_a_rebuild_keeps_every_row_and_appends_sorted_keys(history: tuple[str, list[Counts]], min_count: int) -> None:
    field, counts = history
    known: list[int | str] = []
    for night, vocabulary in zip(counts, build(field, counts, min_count), strict=True):
        keys = vocabulary.keys.to_pylist()
        fresh = {key for key, count in night.items() if count >= min_count} - set(known)
        assert keys[: len(known)] == known
        assert keys[len(known) :] == sorted(fresh, key=lambda key: key.encode() if isinstance(key, str) else key)
        assert vocabulary.size == FIRST_KEY + len(keys)
        known = keys


@given(nights, st.lists(ids), st.lists(texts))
def test_a_lookup_is_a_dictionary_s(history: tuple[str, list[Counts]], numbers: list[int], words: list[str]) -> None:
    field, counts = history
    vocabulary = build(field, counts)[-1]
    rows = {key: row for row, key in enumerate(vocabulary.keys.to_pylist(), FIRST_KEY)}
    values = [None, *(numbers if field == "item" else words), *rows, None]
    expected = [PADDING if value is None else rows.get(value, UNKNOWN) for value in values]
    found = vocabulary.lookup(pa.array(values, vocabulary.keys.type))
    assert found.dtype == np.int32
    assert found.tolist() == expected
    sliced = pa.chunked_array([pa.array(values[:1], vocabulary.keys.type), pa.array(values, vocabulary.keys.type)[1:]])
    assert vocabulary.lookup(sliced).tolist() == expected


def test_smaller_integers_are_looked_up_too() -> None:
    surfaces = extend(None, "surface", table("item", {3: 1, 1: 1}), min_count=1)
    assert surfaces.lookup(pa.array([1, 3, None, 2], pa.int16())).tolist() == [2, 3, 0, 1]


def test_an_empty_vocabulary_knows_nothing() -> None:
    vocabulary = extend(None, "item", table("item", {}), min_count=1)
    assert vocabulary.size == FIRST_KEY
    assert vocabulary.lookup(pa.array([5, None])).tolist() == [UNKNOWN, PADDING]
    assert vocabulary.lookup(pa.array([], pa.int64())).tolist() == []


@pytest.fixture
def vocabularies() -> VocabularySet:
    items = extend(None, "item", table("item", {9: 3, 4: 2, 7: 1}), min_count=2)
    return VocabularySet((items, extend(None, "author", table("author", {"b": 1, "a": 1}), min_count=1)))


def test_a_saved_set_loads_equal(tmp_path: Path, vocabularies: VocabularySet) -> None:
    vocabularies.save(tmp_path)
    loaded = VocabularySet.load(tmp_path)
    assert loaded.hash == vocabularies.hash
    assert loaded.sizes == {"item": 4, "author": 4}
    assert loaded.field("item").keys.to_pylist() == [4, 9]
    assert loaded.field("item").counts.tolist() == [2, 3]
    saved = pq.read_table(tmp_path / "item.parquet")
    assert saved.schema.equals(vocabulary_schema("item"))
    assert saved["row"].to_pylist() == [2, 3]


def test_equal_content_gives_equal_bytes(tmp_path: Path, vocabularies: VocabularySet) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        vocabularies.save(tmp_path / name)
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("field", "counts"),
    [
        ("item", {9: 3, 4: 2, 8: 5}),
        ("item", {9: 3}),
        ("user", {9: 3, 4: 2}),
    ],
)
def test_the_hash_tells_keys_and_fields_apart(vocabularies: VocabularySet, field: str, counts: dict[int, int]) -> None:
    other = extend(None, field, table("item", counts), min_count=1)
    assert VocabularySet((other, vocabularies.field("author"))).hash != vocabularies.hash


def test_the_hash_is_of_the_rows_not_of_the_counts_or_the_memory(vocabularies: VocabularySet) -> None:
    items = vocabularies.field("item")
    longer = extend(None, "item", table("item", {1: 1, 4: 1, 9: 1, 11: 1}), min_count=1)
    sliced = Vocabulary("item", longer.keys[1:3], longer.counts[1:3])
    assert sliced.keys.equals(items.keys)
    assert VocabularySet((sliced, vocabularies.field("author"))).hash == vocabularies.hash
    authors = vocabularies.field("author")
    words = pa.array(["x", "a", "b", "y"])[1:3]
    assert VocabularySet((items, Vocabulary("author", words, authors.counts))).hash == vocabularies.hash


def test_a_field_that_is_not_there(vocabularies: VocabularySet) -> None:
    with pytest.raises(DataError, match="vocabulary has no field 'tag'"):
        vocabularies.field("tag")


def _remove_document(directory: Path) -> None:
    (directory / VOCABULARY_FILE).unlink()


def _remove_field(directory: Path) -> None:
    (directory / "author.parquet").unlink()


def _truncate_field(directory: Path) -> None:
    path = directory / "author.parquet"
    path.write_bytes(path.read_bytes()[:-9])


def _exchange_keys(directory: Path) -> None:
    path = directory / "item.parquet"
    saved = pq.read_table(path)
    keys = pa.array(saved["key"].to_pylist()[::-1], pa.int64())
    pq.write_table(saved.set_column(0, saved.schema.field("key"), keys), path)


def _skip_a_row(directory: Path) -> None:
    path = directory / "item.parquet"
    saved = pq.read_table(path)
    pq.write_table(saved.set_column(1, saved.schema.field("row"), pa.array([2, 4], pa.int32())), path)


def _change_the_hash(directory: Path) -> None:
    path = directory / VOCABULARY_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "hash": "0" * 64}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_remove_document, "vocabulary.json: no such file"),
        (_remove_field, "author.parquet: no such file"),
        (_truncate_field, "author.parquet: cannot be read as Parquet"),
        (_exchange_keys, "vocabulary.json: hash does not match the field files; run the vocab stage again"),
        (_skip_a_row, "item.parquet: column 'row' does not count up from 2"),
        (_change_the_hash, "vocabulary.json: hash does not match the field files; run the vocab stage again"),
    ],
)
def test_a_damaged_directory_is_refused(
    tmp_path: Path, vocabularies: VocabularySet, damage: object, message: str
) -> None:
    vocabularies.save(tmp_path)
    assert callable(damage)
    damage(tmp_path)
    with pytest.raises(DataError) as error:
        VocabularySet.load(tmp_path)
    assert message in str(error.value)
