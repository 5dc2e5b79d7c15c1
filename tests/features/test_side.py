from __future__ import annotations

import numpy as np
import pyarrow as pa

from features.schema import side_table_schema
from features.side import encode_side_table

CATEGORIES = ("author", "tag")


def test_unknown_ids_and_null_categories_get_padding_and_unknown_categories_get_unknown(encoder):
    table = pa.table(
        [[9, -5, 3], ["a1", None, "a9"], ["t2", "t0", None]], schema=side_table_schema("item_id", CATEGORIES)
    )
    codes = encode_side_table(table, "item_id", CATEGORIES, encoder.vocabularies)
    author, tag = codes.lookup(np.array([3, 9, 9, 4, -5, 10**12]))
    assert author.tolist() == [1, 3, 3, 0, 0, 0]
    assert tag.tolist() == [0, 4, 4, 0, 2, 0]
    assert author.dtype == tag.dtype == np.int32


def test_an_empty_side_table_knows_nobody(encoder):
    table = side_table_schema("item_id", CATEGORIES).empty_table()
    codes = encode_side_table(table, "item_id", CATEGORIES, encoder.vocabularies)
    assert [column.tolist() for column in codes.lookup(np.array([1, 2]))] == [[0, 0], [0, 0]]
