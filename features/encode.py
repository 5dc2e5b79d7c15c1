"""Heterogeneous action encodings: intensity and context codes of a token. Code 0 always means unknown."""

from __future__ import annotations

import numpy as np

from features.calendar import MS_PER_DAY, local_ms
from features.config import IntensityConfig
from features.errors import DataError
from features.spec import CategoricalField

_MAX_INTENSITY_SIZE = 256
_NUM_DURATION_CODES = 64
_NUM_GAP_CODES = 32
_SIZES = {"hour": 25, "weekday": 8, "duration": _NUM_DURATION_CODES, "gap": _NUM_GAP_CODES}


def intensity_size(config: IntensityConfig) -> int:
    """Number of intensity codes, the unknown one included.

    Raises:
        DataError: they do not fit in the column's 8 bits.
    """
    values = len(config.value_edges) + 1 if config.value_edges else 0
    size = 1 + _num_watch_codes(config) + values
    if size > _MAX_INTENSITY_SIZE:
        raise DataError(
            f"features.intensity: its edges make {size} codes, at most {_MAX_INTENSITY_SIZE} fit; list fewer edges"
        )
    return size


def _num_watch_codes(config: IntensityConfig) -> int:
    return (len(config.watch_ratio_edges) + 2) * (len(config.watch_ms_edges) + 1)


def encode_intensity(
    watch_ms: np.ndarray, duration_ms: np.ndarray, value: np.ndarray, config: IntensityConfig
) -> np.ndarray:
    """How strongly the user reacted: bucket of watch ratio x watch time, or of an explicit value.

    Args:
        watch_ms: (N,) float64, NaN = unknown.
        duration_ms: (N,) float64, NaN = unknown.
        value: (N,) float64, NaN = unknown; used where watch_ms is unknown.
        config: bucket edges; a value equal to an edge falls into the bucket above it.

    Returns:
        (N,) uint8 codes as in the data contract.
    """
    watch_bucket = np.searchsorted(config.watch_ms_edges, watch_ms, side="right")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = watch_ms / duration_ms
    known_ratio = np.isfinite(ratio)
    ratio_bucket = np.where(
        known_ratio,
        np.searchsorted(config.watch_ratio_edges, np.where(known_ratio, ratio, 0.0), side="right"),
        len(config.watch_ratio_edges) + 1,
    )
    codes = np.where(np.isnan(watch_ms), 0, 1 + ratio_bucket * (len(config.watch_ms_edges) + 1) + watch_bucket)
    if config.value_edges:
        by_value = np.isnan(watch_ms) & ~np.isnan(value)
        value_bucket = np.searchsorted(config.value_edges, value, side="right")
        codes = np.where(by_value, 1 + _num_watch_codes(config) + value_bucket, codes)
    return codes.astype(np.uint8)


def encode_hour(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """1 + local hour of day, uint8."""
    return (1 + local_ms(timestamp_ms, timezone) % MS_PER_DAY // 3_600_000).astype(np.uint8)


def encode_weekday(timestamp_ms: np.ndarray, timezone: str) -> np.ndarray:
    """1 for Monday to 7 for Sunday, local, uint8."""
    days = local_ms(timestamp_ms, timezone) // MS_PER_DAY
    return (1 + (days + 3) % 7).astype(np.uint8)  # 1970-01-01 was a Thursday


def encode_duration(duration_ms: np.ndarray) -> np.ndarray:
    """1 + floor(4 log2(1 + seconds)), at most 63; 0 where NaN. uint8."""
    return _log_code(duration_ms, 4.0, _NUM_DURATION_CODES)


def encode_gap(timestamp_ms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """1 + floor(log2(1 + seconds to the next older event of the same user)), at most 31; 0 for the oldest. uint8.

    Args:
        timestamp_ms: (N,) newest first within each user.
        offsets: (U + 1,) rows of each user.
    """
    gap_ms = np.full(len(timestamp_ms), np.nan)
    gap_ms[:-1] = timestamp_ms[:-1] - timestamp_ms[1:]
    ends = offsets[1:][np.diff(offsets) > 0]
    gap_ms[ends - 1] = np.nan
    return _log_code(gap_ms, 1.0, _NUM_GAP_CODES)


def _log_code(milliseconds: np.ndarray, steps_per_octave: float, num_codes: int) -> np.ndarray:
    known = ~np.isnan(milliseconds)
    seconds = np.where(known, milliseconds, 0.0) / 1000.0
    code = 1 + np.floor(steps_per_octave * np.log2(1.0 + seconds))
    return np.where(known, np.minimum(code, num_codes - 1), 0).astype(np.uint8)


def context_fields(names: tuple[str, ...], num_surfaces: int) -> tuple[CategoricalField, ...]:
    """Name and number of codes of each context; surfaces are vocabulary rows."""
    sizes = {**_SIZES, "surface": num_surfaces}
    return tuple(CategoricalField(name=name, size=sizes[name]) for name in names)
