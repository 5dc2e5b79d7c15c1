"""Raw ids and times of candidates to the codes that a model embeds, as the streams stage would have made them.

Legend: C candidates, F item fields, X contexts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encode import encode_duration, encode_hour, encode_weekday
from features.errors import DataError
from features.side import SideCodes
from features.vocabulary import UNKNOWN, VocabularySet
from model.serving.bundle import ITEMS, Bundle


@dataclass(frozen=True)
class RawCandidates:
    """Candidates as a caller knows them.

    Attributes:
        item_id_C: (C,) int64 raw ids.
        request_ms_C: (C,) int64, the time of each candidate's request.
        surface_C: (C,) float64 raw surfaces, NaN where unknown.
        duration_ms_C: (C,) float64, NaN where unknown.
    """

    item_id_C: np.ndarray
    request_ms_C: np.ndarray
    surface_C: np.ndarray
    duration_ms_C: np.ndarray


@dataclass(frozen=True)
class EncodedCandidates:
    """The same as codes: one (C,) int32 array per item field and per candidate context of the spec."""

    items: tuple[np.ndarray, ...]
    contexts: tuple[np.ndarray, ...]

    @property
    def unknown_items(self) -> np.ndarray:
        """(C,) bool, items that the vocabulary does not have."""
        return self.items[0] == UNKNOWN


class CandidateEncoder:
    """Looks raw ids up in a bundle's vocabulary and item catalogue."""

    def __init__(self, bundle: Bundle) -> None:
        self._contents = bundle.contents
        self._vocabularies = bundle.vocabularies()
        self._catalogue = load_catalogue(bundle)

    @property
    def vocabularies(self) -> VocabularySet:
        """The bundle's."""
        return self._vocabularies

    def encode(self, candidates: RawCandidates) -> EncodedCandidates:
        """Codes of candidates; unknown items get row 1, categories of items outside of the catalogue row 0."""
        item_id_C = candidates.item_id_C
        item_C = self._vocabularies.field("item").lookup(pa.array(item_id_C, pa.int64()))
        contexts = {
            "surface": lambda: self._surface(candidates.surface_C),
            "hour": lambda: encode_hour(candidates.request_ms_C, self._contents.timezone),
            "weekday": lambda: encode_weekday(candidates.request_ms_C, self._contents.timezone),
            "duration": lambda: encode_duration(candidates.duration_ms_C),
        }
        fields = self._contents.spec.candidate_contexts
        return EncodedCandidates(
            items=(item_C, *self._catalogue.lookup(item_id_C)),
            contexts=tuple(contexts[field.name]().astype(np.int32) for field in fields),
        )

    def _surface(self, surface_C: np.ndarray) -> np.ndarray:
        unknown_C = np.isnan(surface_C)
        values = pa.array(np.where(unknown_C, 0, surface_C).astype(np.int64), mask=unknown_C)
        return self._vocabularies.field("surface").lookup(values)


def catalogue_schema(categories: tuple[str, ...]) -> pa.Schema:
    """items.parquet of a bundle: the raw id and a vocabulary row per category."""
    fields = [pa.field("item_id", pa.int64(), nullable=False)]
    return pa.schema(fields + [pa.field(name, pa.int32(), nullable=False) for name in categories])


def catalogue_table(codes: SideCodes, categories: tuple[str, ...]) -> pa.Table:
    """The catalogue as it is stored."""
    return pa.Table.from_arrays([pa.array(codes.ids), *map(pa.array, codes.codes)], schema=catalogue_schema(categories))


def load_catalogue(bundle: Bundle) -> SideCodes:
    """Reads a bundle's catalogue.

    Raises:
        DataError: it is not one.
    """
    path = bundle.path / ITEMS
    categories = tuple(field.name for field in bundle.contents.spec.item_fields[1:])
    try:
        table = pq.read_table(path, schema=catalogue_schema(categories)).combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a catalogue of items: {error}") from None
    return SideCodes(table.column("item_id").to_numpy(), tuple(table.column(name).to_numpy() for name in categories))


@dataclass(frozen=True)
class UserCodes:
    """What is known of a user beside the events: (F,) int32 codes as FeatureSpec.user_fields."""

    fields: np.ndarray

    @classmethod
    def unknown(cls, num_fields: int) -> Self:
        """A user whom neither vocabulary nor streams know."""
        fields = np.zeros(num_fields, np.int32)
        fields[0] = UNKNOWN
        return cls(fields)

    @property
    def is_unknown(self) -> bool:
        """Whether the vocabulary has no row for the user."""
        return bool(self.fields[0] == UNKNOWN)
