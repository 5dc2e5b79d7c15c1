"""The row checks of a log: each row becomes an event, or a fault with its column and reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from pipelines.sources.lines import FAULT_SCHEMA, LINE
from pipelines.sources.raw import LogLayout, TimeRange

# Above it, doubles (and so JSON readers and spreadsheets) no longer tell neighbouring ids apart.
MAX_ID = 2**53
RANDOM_SURFACE = 100

_INT32_MAX = 2**31 - 1
_INT16_MAX = 2**15 - 1
_MS_PER_UNIT = {"s": 1000.0, "ms": 1.0, "us": 0.001}
_UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds"}
_MASK = "action_mask"


@dataclass(frozen=True)
class _Check:
    """Rows where `fails` is true are bad for `reason`."""

    column: str
    reason: str
    fails: pl.Expr


@dataclass(frozen=True)
class CheckedRows:
    """Events with every column of EVENTS but source_order and with LINE, and the faults (FAULT_SCHEMA)."""

    events: pl.DataFrame
    faults: pl.DataFrame


def check_rows(frame: pl.DataFrame, layout: LogLayout, times: TimeRange) -> CheckedRows:
    """Checks rows whose columns are parsed or text, and translates the good ones.

    A row with several faults is counted once, by the first: ids, time, actions, watch time, duration, value, surface.

    Args:
        frame: the layout's columns under their raw names, and LINE.
    """
    dtypes = dict(frame.schema)
    uses = _parsed(layout, dtypes)
    checks = list(_checks(layout, dtypes, times))
    parsed, faults = _split(frame.with_columns(uses), checks)
    return CheckedRows(parsed.select(LINE, *_event_columns(layout)), faults)


def check_keys(frame: pl.DataFrame, key: str) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Splits a side table's rows into those with a good id and the faults (FAULT_SCHEMA) of the others."""
    dtypes = dict(frame.schema)
    parsed = frame.with_columns(_cast(key, dtypes, pl.Int64()).alias("_key"))
    return _split(parsed, list(_id_checks(key, "_key", dtypes)))


def _split(rows: pl.DataFrame, checks: list[_Check]) -> tuple[pl.DataFrame, pl.DataFrame]:
    faulty = rows.select(pl.any_horizontal(check.fails.fill_null(False) for check in checks)).to_series()
    if not faulty.any():
        return rows, pl.DataFrame(schema=FAULT_SCHEMA)
    return rows.filter(~faulty), _first_faults(rows.filter(faulty), checks)


def _first_faults(rows: pl.DataFrame, checks: list[_Check]) -> pl.DataFrame:
    number = pl.coalesce(
        pl.when(check.fails).then(pl.lit(place, pl.Int16)) for place, check in enumerate(checks)
    ).alias("number")
    texts = pl.DataFrame(
        {
            "number": pl.Series(range(len(checks)), dtype=pl.Int16),
            "column": [check.column for check in checks],
            "reason": [check.reason for check in checks],
        }
    )
    found = rows.select(LINE, number).join(texts, on="number", how="left", maintain_order="left")
    return found.select(FAULT_SCHEMA.names()).cast(FAULT_SCHEMA)


def _parsed(layout: LogLayout, dtypes: dict[str, pl.DataType]) -> list[pl.Expr]:
    """Each use as a column of its own, null where the raw value is null or does not parse."""
    integer, decimal = pl.Int64(), pl.Float64()
    amount = decimal if layout.decimals else integer
    uses = [
        _cast(layout.user_id, dtypes, integer).alias("_user_id"),
        _cast(layout.item_id, dtypes, integer).alias("_item_id"),
        _timestamp(layout, dtypes).alias("_time"),
        *(_flag(column, dtypes).alias(f"_flag{bit}") for column, bit in layout.flags),
        *(_cast(action.column, dtypes, decimal).alias(f"_number{action.bit}") for action in layout.ranges),
    ]
    if layout.event_types:
        types = layout.event_types
        text = pl.col(types.column).cast(pl.String)
        uses.append(text.replace_strict(dict(types.masks), default=None, return_dtype=pl.UInt32).alias("_mask"))
    optional = [
        (layout.watch_ms, "_watch_ms", amount),
        (layout.watch_percent, "_watch_percent", decimal),
        (layout.duration_ms, "_duration_ms", amount),
        (layout.duration_s, "_duration_s", decimal),
        (layout.value, "_value", decimal),
        (layout.surface, "_surface", integer),
        (layout.random_flag, "_random", integer),
    ]
    uses += [_cast(column, dtypes, dtype).alias(name) for column, name, dtype in optional if column is not None]
    return uses


def _cast(column: str, dtypes: dict[str, pl.DataType], dtype: pl.DataType) -> pl.Expr:
    raw = pl.col(column)
    if dtypes[column] == pl.String():
        raw = raw.str.strip_chars()
    value = raw.cast(dtype, strict=False)
    return value.fill_nan(None) if dtype == pl.Float64() else value


def _flag(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    """As narrow as it came: there may be many flags, and 0 and 1 are the same in any integer type."""
    return pl.col(column) if dtypes[column].is_integer() else _cast(column, dtypes, pl.Int64())


def _timestamp(layout: LogLayout, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    dtype = dtypes[layout.timestamp]
    if isinstance(dtype, pl.Datetime):
        return pl.col(layout.timestamp).dt.epoch("us") / 1000.0
    counted = _cast(layout.timestamp, dtypes, pl.Float64()) * _MS_PER_UNIT[layout.timestamp_unit]
    return counted + layout.timestamp_origin_ms


def _unparsable(column: str, parsed: str) -> pl.Expr:
    return pl.col(column).is_not_null() & pl.col(parsed).is_null()


def _checks(layout: LogLayout, dtypes: dict[str, pl.DataType], times: TimeRange) -> Iterator[_Check]:
    yield from _id_checks(layout.user_id, "_user_id", dtypes)
    yield from _id_checks(layout.item_id, "_item_id", dtypes)
    yield from _time_checks(layout, dtypes, times)
    for column, bit in layout.flags:
        yield _Check(column, "action flag is not 0 or 1", _not_a_flag(f"_flag{bit}"))
    if layout.event_types:
        yield _Check(layout.event_types.column, "unknown action value", pl.col("_mask").is_null())
    for action in layout.ranges:
        bad = _unparsable(action.column, f"_number{action.bit}") & ~_is_nan(action.column, dtypes)
        yield _Check(action.column, "not a number", bad)
    yield from _amount_checks(layout, dtypes)
    if layout.value is not None:
        bad = _unparsable(layout.value, "_value") & ~_is_nan(layout.value, dtypes)
        yield _Check(layout.value, "not a number", bad | pl.col("_value").cast(pl.Float32).is_infinite())
    if layout.random_flag is not None:
        yield _Check(layout.random_flag, "flag is not 0 or 1", _not_a_flag("_random"))
    if layout.surface is not None:
        yield _Check(layout.surface, "not an integer", _unparsable(layout.surface, "_surface"))
        bound = _INT16_MAX - RANDOM_SURFACE
        yield _Check(layout.surface, f"surface outside 0..{bound}", ~pl.col("_surface").is_between(0, bound))


def _amount_checks(layout: LogLayout, dtypes: dict[str, pl.DataType]) -> Iterator[_Check]:
    kind = "not a number" if layout.decimals else "not an integer"
    amounts = [
        (layout.watch_ms, "_watch_ms", kind, _watch_ms(layout)),
        (layout.watch_percent, "_watch_percent", "not a number", _watch_ms(layout)),
        (layout.duration_ms, "_duration_ms", kind, _duration_ms(layout)),
        (layout.duration_s, "_duration_s", "not a number", _duration_ms(layout)),
    ]
    for column, parsed, reason, milliseconds in amounts:
        if column is not None:
            yield _Check(column, reason, _unparsable(column, parsed) & ~_is_nan(column, dtypes))
            yield _Check(column, "over 2147483647 milliseconds", milliseconds > _INT32_MAX)


def _watch_ms(layout: LogLayout) -> pl.Expr:
    if layout.watch_percent is not None:
        return pl.col("_watch_percent") / 100 * _duration_ms(layout)
    return pl.col("_watch_ms") if layout.watch_ms is not None else pl.lit(None, pl.Int32)


def _duration_ms(layout: LogLayout) -> pl.Expr:
    if layout.duration_s is not None:
        return pl.col("_duration_s") * 1000
    return pl.col("_duration_ms") if layout.duration_ms is not None else pl.lit(None, pl.Int32)


def _is_nan(column: str, dtypes: dict[str, pl.DataType]) -> pl.Expr:
    """Tables from pandas write a missing number as NaN."""
    return pl.col(column).is_nan() if dtypes[column].is_float() else pl.lit(False)


def _not_a_flag(parsed: str) -> pl.Expr:
    return ~pl.col(parsed).is_in([0, 1]) | pl.col(parsed).is_null()


def _id_checks(column: str, parsed: str, dtypes: dict[str, pl.DataType]) -> Iterator[_Check]:
    value = pl.col(parsed)
    yield _Check(column, "null key", pl.col(column).is_null())
    if dtypes[column] == pl.String():
        digits = pl.col(column).str.strip_chars().str.contains(r"^-?\d+$")
        yield _Check(column, "not an integer", value.is_null() & ~digits)
        yield _Check(column, "negative id", value.is_null() & pl.col(column).str.contains("-", literal=True))
    yield _Check(column, "negative id", value < 0)
    yield _Check(column, "id over 2^53", (value > MAX_ID) | value.is_null())


def _time_checks(layout: LogLayout, dtypes: dict[str, pl.DataType], times: TimeRange) -> Iterator[_Check]:
    column, time = layout.timestamp, pl.col("_time")
    yield _Check(column, "null key", pl.col(column).is_null() | _is_nan(column, dtypes))
    yield _Check(column, "not a number" if layout.decimals else "not an integer", _unparsable(column, "_time"))
    outside = f"timestamp outside {times.text}"
    for unit, ms_per_unit in _MS_PER_UNIT.items():
        if not layout.timestamp_origin_ms and unit != layout.timestamp_unit:
            factor = ms_per_unit / _MS_PER_UNIT[layout.timestamp_unit]
            hint = f"{outside}: looks like {_UNIT_NAMES[unit]}, not {_UNIT_NAMES[layout.timestamp_unit]}"
            yield _Check(column, hint, _within(time * factor, times))
    yield _Check(column, outside, ~_within(time, times))


def _within(time: pl.Expr, times: TimeRange) -> pl.Expr:
    return (time >= times.earliest_ms) & (time < times.latest_ms)


def _event_columns(layout: LogLayout) -> list[pl.Expr]:
    bits = [(pl.col(f"_flag{bit}"), bit) for _, bit in layout.flags]
    for action in layout.ranges:
        inside = pl.col(f"_number{action.bit}").is_between(action.minimum, action.maximum)
        bits.append((inside.fill_null(False), action.bit))
    # Few bits are put together in as few bytes and widened once. All are 0 or 1, so no cast needs to be a checked one.
    dtype = pl.UInt8 if not layout.event_types and all(bit < 8 for _, bit in bits) else pl.UInt32
    mask = pl.col("_mask") if layout.event_types else pl.lit(0, dtype)
    for is_set, bit in bits:
        mask = mask | (is_set.cast(dtype, wrap_numerical=True) * pl.lit(1 << bit, dtype))
    surface = pl.col("_surface") if layout.surface is not None else pl.lit(None, pl.Int16)
    if layout.random_flag is not None:
        surface = surface + RANDOM_SURFACE * pl.col("_random")
    watch, duration = _watch_ms(layout), _duration_ms(layout)
    if layout.decimals:
        watch, duration = watch.cast(pl.Float64).round(), duration.cast(pl.Float64).round()
    value = pl.col("_value") if layout.value is not None else pl.lit(None, pl.Float32)
    return [
        pl.col("_user_id").alias("user_id"),
        pl.col("_item_id").alias("item_id"),
        pl.col("_time").round().cast(pl.Int64).alias("timestamp_ms"),
        mask.cast(pl.UInt32).alias(_MASK),
        watch.clip(0).cast(pl.Int32).alias("watch_ms"),
        pl.when(duration > 0).then(duration).cast(pl.Int32).alias("duration_ms"),
        value.cast(pl.Float32).alias("value"),
        surface.cast(pl.Int16).alias("surface"),
    ]
