"""One shard of the streams dataset: events in, the users and requests tables out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.actions import mask_of
from features.columns import as_float, take_rows
from features.config import FeaturesConfig
from features.encode import encode_clock, encode_duration, encode_gap, encode_intensity
from features.order import newest_first
from features.requests import Requests, form_requests
from features.schema import CANDIDATES, requests_schema, users_schema
from features.side import SideCodes
from features.vocabulary import VocabularySet

TRAIN, EVAL = 0, 1


@dataclass(frozen=True)
class ShardEncoder:
    """Everything beside the events that decides a shard's content."""

    features: FeaturesConfig
    timezone: str
    cut_ms: int
    vocabularies: VocabularySet
    items: SideCodes
    users: SideCodes


@dataclass(frozen=True)
class ShardTables:
    """A finished shard and its account: rows read = num_events + num_duplicates."""

    users: pa.Table
    requests: pa.Table
    num_events: int
    num_duplicates: int


@dataclass(frozen=True)
class _Events:
    """Events of a shard, users ascending and newest first, with everything that streams and candidates share."""

    user_ids: np.ndarray
    offsets: np.ndarray
    item_id: np.ndarray
    item_codes: tuple[np.ndarray, ...]
    timestamp_ms: np.ndarray
    action_mask: np.ndarray
    intensity: np.ndarray
    watch_ratio: np.ndarray
    contexts: dict[str, np.ndarray]
    source_order: np.ndarray


@dataclass(frozen=True)
class OrderedEvents:
    """Events of a shard in the order of `features.order`, without duplicates.

    Attributes:
        table: the columns of EVENTS but user_id.
        user_ids: (U,) int64 ascending.
        offsets: (U + 1,) int64, rows of each user.
        num_duplicates: rows left out.
    """

    table: pa.Table
    user_ids: np.ndarray
    offsets: np.ndarray
    num_duplicates: int


def order_events(events: pa.Table) -> OrderedEvents:
    """Copies a table of EVENTS in order; the original may go then."""
    order = newest_first(events)
    table = take_rows(events.drop_columns(["user_id"]), order.rows)
    return OrderedEvents(table, order.user_ids, order.offsets, order.num_duplicates)


def build_shard(events: pa.Table, encoder: ShardEncoder) -> ShardTables:
    """Orders, deduplicates and encodes a table of EVENTS and splits it into streams and requests.

    Deterministic: the same rows give the same tables, in whatever order they come.
    """
    return encode_shard(order_events(events), encoder)


def encode_shard(events: OrderedEvents, encoder: ShardEncoder) -> ShardTables:
    """Encodes ordered events and splits them into streams and requests."""
    num_events, num_duplicates = events.table.num_rows, events.num_duplicates
    encoded = _encode(events.table, events.user_ids, events.offsets, encoder=encoder)
    del events  # a third of its columns is not needed any more, and a shard may be large
    streams = {name: _stream_mask(encoded.action_mask, name, encoder.features) for name in encoder.features.streams}
    requests = form_requests(
        encoded.timestamp_ms,
        encoded.offsets,
        streams["consumption"],
        config=encoder.features.requests,
        cut_ms=encoder.cut_ms,
    )
    return ShardTables(
        users=_users_table(encoded, streams, encoder),
        requests=_requests_table(encoded, streams, requests, encoder=encoder),
        num_events=num_events,
        num_duplicates=num_duplicates,
    )


def _encode(events: pa.Table, user_ids: np.ndarray, offsets: np.ndarray, *, encoder: ShardEncoder) -> _Events:
    item_id = events.column("item_id").to_numpy()
    timestamp_ms = events.column("timestamp_ms").to_numpy()
    watch_ms, duration_ms, value = (as_float(events.column(name)) for name in ("watch_ms", "duration_ms", "value"))
    with np.errstate(invalid="ignore", divide="ignore"):
        watch_ratio = (watch_ms / duration_ms).astype(np.float32)
    watch_ratio[~(duration_ms > 0)] = np.nan
    hour, weekday = encode_clock(timestamp_ms, encoder.timezone)
    contexts = {
        "surface": encoder.vocabularies.field("surface").lookup(events.column("surface")).astype(np.uint16),
        "hour": hour,
        "weekday": weekday,
        "duration": encode_duration(duration_ms),
    }
    return _Events(
        user_ids=user_ids,
        offsets=offsets,
        item_id=item_id,
        item_codes=(
            encoder.vocabularies.field("item").lookup(events.column("item_id")),
            *encoder.items.lookup(item_id),
        ),
        timestamp_ms=timestamp_ms,
        action_mask=events.column("action_mask").to_numpy(),
        intensity=encode_intensity(watch_ms, duration_ms, value, encoder.features.intensity),
        watch_ratio=watch_ratio,
        contexts=contexts,
        source_order=events.column("source_order").to_numpy(),
    )


def _stream_mask(action_mask: np.ndarray, stream: str, features: FeaturesConfig) -> np.ndarray:
    actions = features.streams[stream]
    if actions == "all":
        return np.ones(len(action_mask), bool)
    return action_mask & np.uint32(mask_of(actions, features.actions)) != 0


def _users_table(events: _Events, streams: dict[str, np.ndarray], encoder: ShardEncoder) -> pa.Table:
    columns: list[np.ndarray | pa.Array] = [
        events.user_ids,
        encoder.vocabularies.field("user").lookup(pa.array(events.user_ids)),
        *encoder.users.lookup(events.user_ids),
    ]
    for mask in streams.values():
        rows = _rows_of(mask)
        offsets = _offsets_within(mask, events.offsets)
        columns += [_as_lists(values, offsets) for values in _token_columns(events, rows, offsets, encoder=encoder)]
    return _table(columns, users_schema(encoder.features))


def _token_columns(
    events: _Events, rows: np.ndarray | slice, offsets: np.ndarray, *, encoder: ShardEncoder
) -> Iterator[np.ndarray]:
    """A stream's columns in the order of users_schema."""
    timestamp_ms = events.timestamp_ms[rows]
    yield from (codes[rows] for codes in events.item_codes)
    yield timestamp_ms
    yield events.action_mask[rows]
    yield events.intensity[rows]
    for name in encoder.features.token_contexts:
        yield encode_gap(timestamp_ms, offsets) if name == "gap" else events.contexts[name][rows]


def _requests_table(
    events: _Events, streams: dict[str, np.ndarray], requests: Requests, *, encoder: ShardEncoder
) -> pa.Table:
    rows, offsets = _rows_of(streams["consumption"]), requests.offsets
    candidates = [
        events.item_id[rows],
        *(codes[rows] for codes in events.item_codes),
        events.timestamp_ms[rows],
        events.action_mask[rows],
        events.watch_ratio[rows],
        *(events.contexts[name][rows] for name in encoder.features.candidate_contexts),
    ]
    columns: list[np.ndarray | pa.Array] = [
        events.source_order.take(requests.events.take(offsets[1:] - 1)),
        requests.user,
        requests.request_ms,
        *(_stream_position(mask, events.offsets, requests) for mask in streams.values()),
        np.where(requests.request_ms >= encoder.cut_ms, EVAL, TRAIN).astype(np.uint8),
    ]
    schema = requests_schema(encoder.features)
    columns.append(_as_structs(candidates, offsets, schema.field(CANDIDATES).type))
    return _table(columns, schema)


def _rows_of(mask: np.ndarray) -> np.ndarray | slice:
    """What picks a stream's events; a stream of all events is not copied."""
    return slice(None) if mask.all() else np.flatnonzero(mask)


def _offsets_within(mask: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(U + 1,) offsets of each user's events that are in the stream."""
    return offsets if mask.all() else _num_before(mask).take(offsets)


def _stream_position(mask: np.ndarray, offsets: np.ndarray, requests: Requests) -> np.ndarray:
    """(R,) int32 where in its user's stream a request's history begins."""
    begins = offsets.take(requests.user)
    if mask.all():
        return (requests.history - begins).astype(np.int32)
    before = _num_before(mask)
    return before.take(requests.history) - before.take(begins)


def _num_before(mask: np.ndarray) -> np.ndarray:
    """(N + 1,) int32 how many of the events before each one are in the stream."""
    before = np.zeros(len(mask) + 1, np.int32)
    np.cumsum(mask, dtype=np.int32, out=before[1:])
    return before


def _as_lists(values: np.ndarray, offsets: np.ndarray) -> pa.Array:
    item = pa.field("item", pa.from_numpy_dtype(values.dtype), nullable=False)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values), type=pa.large_list(item))


def _as_structs(columns: list[np.ndarray], offsets: np.ndarray, dtype: pa.LargeListType) -> pa.Array:
    structs = pa.StructArray.from_arrays([pa.array(values) for values in columns], fields=dtype.value_type.fields)
    return pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), structs, type=dtype)


def _table(columns: list[np.ndarray | pa.Array], schema: pa.Schema) -> pa.Table:
    arrays = [column if isinstance(column, pa.Array) else pa.array(column) for column in columns]
    return pa.Table.from_arrays(arrays, schema=schema)
