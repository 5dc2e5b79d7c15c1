"""Rows in few bits: what fbgemm's lookup gives back, how far it is off, and how many bytes it takes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.spec import CategoricalField
from model.serving.quantize import RowFormat, TableFormat, quantize_rows
from model.serving.quantize_tables import QuantizedTables

CPU = torch.device("cpu")
FORMATS = [
    RowFormat(precision="fp32"),
    RowFormat(precision="fp16"),
    RowFormat(precision="int8"),
    RowFormat(precision="int4"),
    RowFormat(precision="int4", group_size=8),
    RowFormat(precision="int4", group_size=16),
]


def decoded(rows_GRN: torch.Tensor, row_format: RowFormat) -> np.ndarray:
    """(R, D) read by hand: half scale, half bias, codes, two int4 to a byte with the lower first."""
    groups = []
    for rows in rows_GRN.numpy():
        if row_format.precision in ("fp32", "fp16"):
            groups.append(rows.copy().view(np.float32 if row_format.precision == "fp32" else np.float16))
            continue
        scale, bias = rows[:, :4].copy().view(np.float16).astype(np.float32).T
        codes = rows[:, 4:].astype(np.float32)
        if row_format.precision == "int4":
            codes = np.stack([rows[:, 4:] & 15, rows[:, 4:] >> 4], axis=2).reshape(len(rows), -1).astype(np.float32)
        groups.append(codes * scale[:, None] + bias[:, None])
    return np.concatenate(groups, axis=1).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    row_format=st.sampled_from(FORMATS),
    small_rows=st.sampled_from([0, 5, 100]),
    lengths=st.lists(st.integers(0, 6), max_size=6),
    seed=st.integers(0, 1 << 16),
)
def test_a_lookup_sums_the_rows_that_were_stored(sizes, row_format, small_rows, lengths, seed):
    generator = torch.Generator().manual_seed(seed)
    fields = tuple(CategoricalField(name=str(number), size=size) for number, size in enumerate(sizes))
    table_format = TableFormat(rows=row_format, small_rows=small_rows)
    weights = {field.name: torch.randn(field.size, 16, generator=generator) for field in fields}
    tables = QuantizedTables(fields, 16, table_format, device=CPU, placement="host")
    stored, segments = {}, []
    for segment in tables.segments:
        parts = [quantize_rows(weights[field.name], segment.rows) for field in segment.fields]
        stored |= {f.name: decoded(rows, segment.rows) for f, rows in zip(segment.fields, parts, strict=True)}
        segments.append(torch.cat(parts, dim=1))
    tables.load_rows(segments)
    asked = [str(int(torch.randint(len(sizes), (1,), generator=generator))) for _ in range(sum(lengths))]
    codes = [int(torch.randint(sizes[int(name)], (1,), generator=generator)) for name in asked]
    rows_L = torch.tensor([tables.first_row[name] + code for name, code in zip(asked, codes, strict=True)]).long()
    offsets_N1 = torch.tensor([0, *np.cumsum(lengths)]).long()
    expected = np.zeros((len(lengths), 16), np.float32)
    for bag, (begin, end) in enumerate(pairwise(offsets_N1.tolist())):
        for place in range(begin, end):
            expected[bag] += stored[asked[place]][codes[place]]
    with torch.inference_mode():
        found = tables(tables.plan(rows_L, offsets_N1))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("row_format", FORMATS)
def test_every_value_is_within_its_step(row_format):
    weights = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    error = np.abs(decoded(quantize_rows(weights, row_format), row_format) - weights.numpy())
    groups = row_format.num_groups(32)
    spread = np.ptp(weights.numpy().reshape(500, groups, -1), axis=2)
    steps = {"fp32": 0.0, "fp16": 2e-3, "int8": 0.51 / 255, "int4": 0.51 / 15}[row_format.precision]
    # an int4 range may be narrower than the values: a few are clipped by up to an eighth of it
    clipped = {"int4": 0.15}.get(row_format.precision, steps)
    assert (error.reshape(500, groups, -1) <= clipped * spread[:, :, None] + 1e-3 * (steps > 0)).all()
    assert np.mean(error.reshape(500, groups, -1) <= steps * spread[:, :, None] + 1e-3 * (steps > 0)) > 0.9


def test_a_narrower_range_is_taken_only_where_it_errs_less():
    outlier = torch.zeros(1, 32)
    outlier[0, :16] = torch.linspace(-1, 1, 16)
    rows = RowFormat(precision="int4")
    plain = (outlier - outlier.min()) / (outlier.max() - outlier.min())
    rounded = (plain * 15).round() / 15 * 2 - 1
    error = np.square(decoded(quantize_rows(outlier, rows), rows) - outlier.numpy()).sum()
    assert error <= float((rounded - outlier).square().sum()) * 1.01


@pytest.mark.parametrize("row_format", FORMATS)
@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_rows_of_equal_values_come_back_as_they_are(row_format, value):
    rows = quantize_rows(torch.full((3, 16), value), row_format)
    np.testing.assert_array_equal(decoded(rows, row_format), np.full((3, 16), value, np.float32))


@pytest.mark.parametrize("dim", [64, 128, 512])
def test_int4_takes_at_most_sixteen_hundredths_of_fp32(dim):
    for row_format in (RowFormat(precision="int4"), RowFormat(precision="int4", group_size=32)):
        rows = quantize_rows(torch.randn(4, dim), row_format)
        assert rows.numel() == 4 * row_format.row_bytes(dim)
        assert rows.numel() <= 0.16 * 4 * dim * 4


def test_small_tables_have_eight_bits_and_a_segment_of_their_own():
    fields = (CategoricalField(name="big", size=100), CategoricalField(name="small", size=10))
    table_format = TableFormat(rows=RowFormat(precision="int4"), small_rows=10)
    large, small = table_format.segments(fields)
    assert [(s.fields[0].name, s.rows.precision, s.is_small) for s in (large, small)] == [
        ("big", "int4", False),
        ("small", "int8", True),
    ]
    assert table_format.num_bytes(fields, 64) == 100 * 36 + 10 * 68


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    weights = torch.zeros(2, 8)
    weights[1, 3] = bad
    with pytest.raises(DataError, match="not finite"):
        quantize_rows(weights, RowFormat(precision="int8"))


def test_values_beyond_half_precision_are_refused_unless_fp32_holds_them():
    weights = torch.full((1, 8), 1e6)
    with pytest.raises(DataError, match="fp32 holds them"):
        quantize_rows(weights, RowFormat(precision="int4"))
    assert decoded(quantize_rows(weights, RowFormat(precision="fp32")), RowFormat(precision="fp32")).max() == 1e6


def test_a_group_must_divide_the_width():
    with pytest.raises(DataError, match=r"export\.group_size: 24 does not divide model\.dim 64"):
        quantize_rows(torch.zeros(1, 64), RowFormat(precision="int4", group_size=24))
    with pytest.raises(ValueError, match="only int4 has groups"):
        RowFormat(precision="int8", group_size=8)
