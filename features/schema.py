"""Arrow schemas of every file the stages exchange, and the one way to check a table against its schema.

EVENTS             data/events/date=YYYY-MM-DD/part-*.parquet   one row per logged impression or action
USERS, ITEMS       data/events/users.parquet, items.parquet      static features keyed by raw id
users.arrow        data/streams/shard-*/                         one row per user: its streams as lists, newest first
requests.arrow     data/streams/shard-*/                         one row per request: candidates as lists, newest first
"""

from __future__ import annotations

import hashlib

import pyarrow as pa

from features.config import FeaturesConfig
from features.errors import DataError

FORMAT_VERSION = 2
ORDER = "newest_first"
CANDIDATES = "candidate"

CONTEXT_TYPES = {
    "surface": pa.uint16(),
    "hour": pa.uint8(),
    "weekday": pa.uint8(),
    "duration": pa.uint8(),
    "gap": pa.uint8(),
}


def _required(name: str, dtype: pa.DataType) -> pa.Field:
    return pa.field(name, dtype, nullable=False)


EVENTS = pa.schema(
    [
        _required("user_id", pa.int64()),
        _required("item_id", pa.int64()),
        _required("timestamp_ms", pa.int64()),
        _required("action_mask", pa.uint32()),
        pa.field("watch_ms", pa.int32()),
        pa.field("duration_ms", pa.int32()),
        pa.field("value", pa.float32()),
        pa.field("surface", pa.int16()),
        _required("source_order", pa.int64()),
    ]
)


def side_table_schema(key: str, categories: tuple[str, ...]) -> pa.Schema:
    """USERS or ITEMS: the raw id and its categories as nullable strings."""
    return pa.schema([_required(key, pa.int64()), *(pa.field(name, pa.string()) for name in categories)])


def _list_of(name: str, dtype: pa.DataType) -> pa.Field:
    return _required(name, pa.large_list(_required("item", dtype)))


def users_schema(features: FeaturesConfig) -> pa.Schema:
    """users.arrow: vocabulary rows of the user's categories and the parallel columns of each stream."""
    fields = [_required("user_id", pa.int64()), _required("user", pa.int32())]
    fields += [_required(name, pa.int32()) for name in features.user_categories]
    for stream in features.streams:
        fields += [
            _list_of(f"{stream}.item", pa.int32()),
            *(_list_of(f"{stream}.{name}", pa.int32()) for name in features.item_categories),
            _list_of(f"{stream}.timestamp_ms", pa.int64()),
            _list_of(f"{stream}.action_mask", pa.uint32()),
            _list_of(f"{stream}.intensity", pa.uint8()),
            *(_list_of(f"{stream}.ctx_{name}", CONTEXT_TYPES[name]) for name in features.token_contexts),
        ]
    return pa.schema(fields)


def requests_schema(features: FeaturesConfig) -> pa.Schema:
    """requests.arrow.

    request_id is the source_order of the request's oldest candidate, so it names a raw row. user_row is a row
    number in the same shard's users.arrow. `<stream>_start` is the index in that user's stream at which the
    history begins: every event from there on is strictly older than request_ms, the oldest candidate's time.
    split is 0 for training and 1 for evaluation. The candidates are lists of structs, one list of offsets for all of
    their columns, since many requests have a single one. watch_ratio is NaN where the log does not tell.
    """
    return pa.schema(
        [
            _required("request_id", pa.int64()),
            _required("user_row", pa.int32()),
            _required("request_ms", pa.int64()),
            *(_required(f"{stream}_start", pa.int32()) for stream in features.streams),
            _required("split", pa.uint8()),
            _required(CANDIDATES, pa.large_list(_required("item", pa.struct(_candidate_fields(features))))),
        ]
    )


def _candidate_fields(features: FeaturesConfig) -> list[pa.Field]:
    return [
        _required("item_id", pa.int64()),
        _required("item", pa.int32()),
        *(_required(name, pa.int32()) for name in features.item_categories),
        _required("timestamp_ms", pa.int64()),
        _required("action_mask", pa.uint32()),
        _required("watch_ratio", pa.float32()),
        *(_required(f"ctx_{name}", CONTEXT_TYPES[name]) for name in features.candidate_contexts),
    ]


def schema_hash(*schemas: pa.Schema) -> str:
    """Hex digest that changes when a column is added, removed, renamed, retyped or moved."""
    text = "\n".join(f"{field.name} {field.type} {field.nullable}" for schema in schemas for field in schema)
    return hashlib.sha256(text.encode()).hexdigest()


def check_schema(found: pa.Schema, expected: pa.Schema, source: str) -> None:
    """Refuses a table whose columns are not exactly the expected ones, in order.

    Raises:
        DataError: names the source file and the first column that is missing, unexpected or of another type.
    """
    for field in expected:
        index = found.get_field_index(field.name)
        if index < 0:
            raise DataError(f"{source}: column '{field.name}' is missing")
        if found.field(index).type != field.type:
            raise DataError(
                f"{source}: column '{field.name}' has type {found.field(index).type}, expected {field.type}"
            )
    extra = [name for name in found.names if expected.get_field_index(name) < 0]
    if extra:
        raise DataError(f"{source}: unexpected column '{extra[0]}'")
    if found.names != expected.names:
        raise DataError(f"{source}: columns are in another order than the schema's")
