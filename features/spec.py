"""What a model must know of a dataset: the names and sizes of everything it embeds."""

from __future__ import annotations

from features.config import Closed


class CategoricalField(Closed):
    """A column of codes in [0, size). Vocabulary fields: row 0 is padding, row 1 out-of-vocabulary."""

    name: str
    size: int


class FeatureSpec(Closed):
    """Written into the streams manifest and into every checkpoint; the order of each tuple is the column order.

    item_fields: `item`, then the item categories, of history tokens and candidates.
    user_fields: `user`, then the user categories, of contextual tokens.
    token_contexts, candidate_contexts: context codes, 0 = unknown.
    intensity_size: number of intensity codes, 0 = unknown.
    """

    actions: tuple[str, ...]
    streams: tuple[str, ...]
    item_fields: tuple[CategoricalField, ...]
    user_fields: tuple[CategoricalField, ...]
    token_contexts: tuple[CategoricalField, ...]
    candidate_contexts: tuple[CategoricalField, ...]
    intensity_size: int
