"""Vocabulary rows of every item or user, ready to be looked up by raw id."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from features.id_index import IdIndex
from features.vocabulary import VocabularySet


@dataclass(frozen=True)
class SideCodes:
    """Rows of the categories of each known id.

    Attributes:
        ids: (N,) int64 ascending.
        codes: one (N,) int32 array per category.
    """

    ids: np.ndarray
    codes: tuple[np.ndarray, ...]

    def lookup(self, ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """One int32 array per category, 0 for an id without a row in the side table."""
        if not self.codes:
            return ()
        position = self._index.find(ids)
        found = position >= 0
        if found.all():
            return tuple(codes.take(position) for codes in self.codes)
        if len(self.ids) == 0:
            return tuple(np.zeros(len(ids), np.int32) for _ in self.codes)
        return tuple(np.where(found, codes.take(position), np.int32(0)) for codes in self.codes)

    @cached_property
    def _index(self) -> IdIndex:
        return IdIndex.of(self.ids)


def encode_side_table(table: pa.Table, key: str, categories: tuple[str, ...], vocabularies: VocabularySet) -> SideCodes:
    """Looks the categories of USERS or ITEMS up once, so that the events only gather."""
    table = table.sort_by(key).combine_chunks()
    codes = tuple(vocabularies.field(name).lookup(table.column(name)) for name in categories)
    return SideCodes(table.column(key).to_numpy(), codes)
