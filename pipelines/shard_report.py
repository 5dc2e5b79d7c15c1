"""What a worker tells of the shard it built, and the statistics of a dataset made from such reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.config import Closed, FeaturesConfig
from features.fingerprint import Fingerprint, fingerprint
from features.jagged import list_array
from features.manifest import USERS_FILE, Manifest, ShardEntry
from features.shard import EVAL, ShardTables
from features.vocabulary import UNKNOWN

_MAX_COUNTED_BITS = 16
_QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 1.0)


class ShardReport(Closed):
    """Counts of one shard.

    Attributes:
        fingerprint_lanes: see features.fingerprint.
        eval_requests: requests of the evaluation window.
        actions: events of each stream that carry each action, in the order of `features.actions`.
        unknown: candidates whose surface or item field is out of vocabulary, by field.
        unknown_users: users whose user field is out of vocabulary, by field.
    """

    entry: ShardEntry
    fingerprint_lanes: tuple[int, ...]
    eval_requests: int
    actions: dict[str, tuple[int, ...]]
    unknown: dict[str, int]
    unknown_users: dict[str, int]

    @property
    def fingerprint(self) -> Fingerprint:
        """The shard's share of the content checksum."""
        return Fingerprint(self.fingerprint_lanes)


def describe_shard(entry: ShardEntry, tables: ShardTables, features: FeaturesConfig) -> ShardReport:
    """Counts what only the shard's columns tell."""
    return ShardReport(
        entry=entry,
        fingerprint_lanes=fingerprint(tables.users, tables.requests).lanes,
        eval_requests=int((tables.requests.column("split").to_numpy() == EVAL).sum()),
        actions={stream: _action_counts(tables.users, stream, len(features.actions)) for stream in features.streams},
        unknown=_unknown_candidates(tables.requests, features),
        unknown_users={
            name: int((tables.users.column(name).to_numpy() == UNKNOWN).sum())
            for name in ("user", *features.user_categories)
        },
    )


def _unknown_candidates(requests: pa.Table, features: FeaturesConfig) -> dict[str, int]:
    columns = {name: f"candidate.{name}" for name in ("item", *features.item_categories)}
    if "surface" in features.candidate_contexts:
        columns["surface"] = "candidate.ctx_surface"
    return {name: int((_flat(requests, column) == UNKNOWN).sum()) for name, column in columns.items()}


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return list_array(table, name).values.to_numpy()


def _action_counts(users: pa.Table, stream: str, num_actions: int) -> tuple[int, ...]:
    masks = _flat(users, f"{stream}.action_mask")
    if num_actions > _MAX_COUNTED_BITS:
        return tuple(int((masks >> np.uint32(bit) & np.uint32(1)).sum()) for bit in range(num_actions))
    counts = np.bincount(masks, minlength=1 << num_actions)  # few patterns, counted in one pass
    return tuple(int(counts[np.arange(len(counts)) >> bit & 1 == 1].sum()) for bit in range(num_actions))


def summarise(
    directory: Path, manifest: Manifest, reports: list[ShardReport], *, features: FeaturesConfig
) -> dict[str, Any]:
    """The stage's stats.json: the account of rows, requests by split, and each stream's lengths and action mix."""
    entries = [report.entry for report in reports]
    requests, eval_requests = sum(entry.requests for entry in entries), sum(report.eval_requests for report in reports)
    events, duplicates = sum(entry.events for entry in entries), sum(entry.duplicates for entry in entries)
    return {
        "read": events + duplicates,
        "events": events,
        "duplicates": duplicates,
        "users": sum(entry.users for entry in entries),
        "candidates": sum(entry.candidates for entry in entries),
        "requests": {"train": requests - eval_requests, "eval": eval_requests},
        "cut_ms": manifest.cut_ms,
        "unknown": {name: sum(report.unknown[name] for report in reports) for name in reports[0].unknown},
        "unknown_users": {
            name: sum(report.unknown_users[name] for report in reports) for name in reports[0].unknown_users
        },
        "streams": {
            stream: _describe_stream(directory, reports, stream, features=features) for stream in features.streams
        },
    }


def _describe_stream(
    directory: Path, reports: list[ShardReport], stream: str, *, features: FeaturesConfig
) -> dict[str, Any]:
    lengths = np.concatenate([_lengths(directory / report.entry.name / USERS_FILE, stream) for report in reports])
    counts = np.sum([report.actions[stream] for report in reports], axis=0)
    quantiles = np.quantile(lengths, _QUANTILES) if len(lengths) else np.zeros(len(_QUANTILES))
    return {
        "events": int(lengths.sum()),
        "users": int((lengths > 0).sum()),
        "length_quantiles": {f"{q:g}": float(value) for q, value in zip(_QUANTILES, quantiles, strict=True)},
        "actions": dict(zip(features.actions, counts.tolist(), strict=True)),
    }


def _lengths(path: Path, stream: str) -> np.ndarray:
    with pa.memory_map(str(path)) as source:
        column = pa.ipc.open_file(source).read_all().column(f"{stream}.item")
    return pc.list_value_length(column).to_numpy()
