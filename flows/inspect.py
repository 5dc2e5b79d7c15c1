"""What `hstu2 inspect` prints: counts and checks of a streams dataset, one user's streams, one request."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.actions import decode_actions
from features.config import FeaturesConfig
from features.dataset import Shard, StreamsDataset, open_dataset, open_shard
from features.errors import DataError
from features.hashing import shard_of
from features.invariants import CHECKS, CheckError, Rules
from features.manifest import FileEntry, Manifest, file_entry, read_manifest
from features.vocabulary import FIRST_KEY, VOCABULARY_FILE, Vocabulary, VocabularySet

SPLITS = ("training", "evaluation")
CHECKS_OF_MANIFEST = ("users", "offsets", "newest_first", "history", "candidates", "split", "codes")


@dataclass(frozen=True)
class UserRows:
    """Where a user is: its shard, its row in users.arrow and its rows in requests.arrow, newest request first."""

    shard: Shard
    user_row: int
    request_rows: np.ndarray


def find_user(dataset: StreamsDataset, user_id: int) -> UserRows:
    """Looks a raw user id up.

    Raises:
        DataError: the dataset has no such user.
    """
    if dataset.shards:
        shard = dataset.shards[shard_of(np.array([user_id]), len(dataset.shards))[0]]
        rows = np.flatnonzero(shard.users.column("user_id") == user_id)
        if len(rows):
            return UserRows(shard, int(rows[0]), np.flatnonzero(shard.requests.column("user_row") == rows[0]))
    raise DataError(f"{dataset.path}: no user {user_id}")


def describe_dataset(directory: Path) -> str:
    """Counts, fields and checks of a dataset; opening it already compares every file with the manifest.

    Raises:
        DataError: the directory is not a whole dataset.
    """
    dataset = open_dataset(directory)
    manifest, entries = dataset.manifest, dataset.manifest.shards
    counted = ("users", "events", "duplicates", "requests", "candidates")
    totals = {name: sum(getattr(entry, name) for entry in entries) for name in counted}
    spec = manifest.spec
    fields = (*spec.item_fields, *spec.user_fields, *spec.token_contexts)
    streams = [
        (name, f"{sum(lengths):,}", f"{np.count_nonzero(lengths):,}", f"{max(lengths, default=0):,}")
        for name, lengths in ((name, _lengths(dataset, name)) for name in spec.streams)
    ]
    return "\n".join(
        [
            f"{directory}: {len(entries)} shards, newest first, content {manifest.content_checksum}",
            f"evaluation from {time_text(manifest.cut_ms)} UTC",
            ", ".join(f"{count:,} {name}" for name, count in totals.items()),
            "",
            *table(("stream", "events", "users with any", "longest"), streams),
            "",
            "actions: " + ", ".join(spec.actions),
            "codes: " + ", ".join(f"{field.name} {field.size:,}" for field in fields),
            "",
            *check_lines(manifest, dict(enumerate(dataset.shards))),
        ]
    )


def check_lines(manifest: Manifest, shards: Mapping[int, Shard]) -> list[str]:
    """One line per check that the manifest alone allows: what must hold, or the first user for whom it does not.

    Args:
        manifest: of the dataset.
        shards: those to check, by number; their files were compared with the manifest.
    """
    rules = Rules(FeaturesConfig.model_construct(), manifest.spec, manifest.cut_ms, len(manifest.shards))
    lines = ["ok   files: all have the sizes and checksums of the manifest"]
    for name in CHECKS_OF_MANIFEST:
        try:
            for index, shard in shards.items():
                CHECKS[name](shard, index, rules)
        except CheckError as error:
            lines.append(f"BAD  {name}: {error}")
        else:
            lines.append(f"ok   {name}: {(CHECKS[name].__doc__ or '').splitlines()[0]}")
    return lines


def describe_shard(directory: Path, number: int) -> str:
    """A shard's counts, its files beside what the manifest says of them, and its checks when the files agree.

    Args:
        directory: the dataset; other shards may be damaged.
        number: which shard, from 0.

    Raises:
        DataError: there is no manifest, or no such shard.
    """
    manifest = read_manifest(directory)
    if not 0 <= number < len(manifest.shards):
        raise DataError(f"{directory}: has shards 0 to {len(manifest.shards) - 1}, there is no {number}")
    entry = manifest.shards[number]
    counts = ", ".join(f"{count:,} {stream} events" for stream, count in entry.stream_events.items())
    states = {name: _file_state(directory / entry.name / name, known) for name, known in sorted(entry.files.items())}
    lines = [
        f"{directory / entry.name}: {entry.users:,} users, {entry.events:,} events ({counts}), {entry.duplicates:,}"
        f" duplicates, {entry.requests:,} requests, {entry.candidates:,} candidates",
        "",
        *table(("file", "bytes", "sha256", ""), [(name, *state) for name, state in states.items()]),
    ]
    if any(verdict != "as the manifest says" for _, _, verdict in states.values()):
        return "\n".join([*lines, "", "BAD  files: this shard is not what was published; run the streams stage again"])
    shard = open_shard(directory, manifest, entry, verify=False)
    return "\n".join([*lines, "", *check_lines(manifest, {number: shard})])


def _file_state(path: Path, expected: FileEntry) -> tuple[str, str, str]:
    """Size, digest and whether they are the manifest's."""
    if not path.is_file():
        return "-", "-", "missing"
    found = file_entry(path)
    verdict = "as the manifest says" if found == expected else f"BAD, the manifest says {expected.sha256}"
    return f"{found.bytes:,}", found.sha256, verdict


def _lengths(dataset: StreamsDataset, stream: str) -> list[int]:
    return [n for shard in dataset.shards for n in shard.users.list(f"{stream}.timestamp_ms").lengths.tolist()]


def describe_user(directory: Path, user_id: int, *, vocab: Path, limit: int) -> str:
    """A user's streams and requests, newest first, with actions and items decoded.

    Args:
        directory: the dataset.
        user_id: raw id.
        vocab: the dataset's vocabulary; items are shown as vocabulary rows where it is missing or another.
        limit: events and requests to show of each.

    Raises:
        DataError: the directory is not a whole dataset, or has no such user.
    """
    dataset = open_dataset(directory, verify=False)
    where, items = find_user(dataset, user_id), load_items(dataset, vocab)
    users, requests, spec = where.shard.users, where.shard.requests, dataset.manifest.spec
    codes = ", ".join(f"{field.name} {users.column(field.name)[where.user_row]}" for field in spec.user_fields)
    lines = [f"user {user_id} in {where.shard.entry.name}, row {where.user_row}; codes: {codes}"]
    for stream in spec.streams:
        count = len(users.list(f"{stream}.item").row(where.user_row))
        events = event_lines(dataset, where, stream, items=items, span=slice(0, limit))
        lines += ["", f"{stream}: {count:,} events, newest first{_shown(count, limit)}", *events]
    headings = ("request", "time (UTC)", "split", "candidates", *(f"{stream} from" for stream in spec.streams))
    sizes = requests.list("candidate.item").lengths
    rows = [
        (
            number,
            time_text(requests.column("request_ms")[row]),
            SPLITS[requests.column("split")[row]],
            sizes[row],
            *(requests.column(f"{stream}_start")[row] for stream in spec.streams),
        )
        for number, row in enumerate(where.request_rows[:limit])
    ]
    count = len(where.request_rows)
    return "\n".join([*lines, "", f"requests: {count:,}, newest first{_shown(count, limit)}", *table(headings, rows)])


def describe_request(directory: Path, user_id: int, number: int, *, vocab: Path, limit: int) -> str:
    """A request's candidates with their labels, and the events around the border of each history.

    Args:
        directory: the dataset.
        user_id: raw id.
        number: which of the user's requests, 0 = newest.
        vocab: see `describe_user`.
        limit: events to show on the history's side of the border.

    Raises:
        DataError: the directory is not a whole dataset, or has no such user or request.
    """
    dataset = open_dataset(directory, verify=False)
    where, items, spec = find_user(dataset, user_id), load_items(dataset, vocab), dataset.manifest.spec
    if number >= len(where.request_rows):
        raise DataError(f"{directory}: user {user_id} has {len(where.request_rows)} requests, there is no {number}")
    row, requests = where.request_rows[number], where.shard.requests
    columns = {
        name: requests.list(f"candidate.{name}").row(row)
        for name in ("item_id", "timestamp_ms", "action_mask", "watch_ratio", "item")
    }
    rows = [
        (item_id, time_text(time), action_names(mask, spec.actions), f"{ratio:.2f}", code)
        for item_id, time, mask, ratio, code in zip(*columns.values(), strict=True)
    ]
    lines = [
        f"request {number} of user {user_id} at {time_text(requests.column('request_ms')[row])} UTC, "
        f"{SPLITS[requests.column('split')[row]]}, id {requests.column('request_id')[row]}",
        "",
        f"candidates: {len(rows)}, newest first; their actions are labels, the model does not see them",
        *table(("item", "time (UTC)", "actions", "watch ratio", "item code"), rows),
    ]
    for stream in spec.streams:
        start = int(requests.column(f"{stream}_start")[row])
        newer = event_lines(dataset, where, stream, items=items, span=slice(max(0, start - 2), start))
        history = event_lines(dataset, where, stream, items=items, span=slice(start, start + limit))
        title = f"{stream}: the history begins at index {start}"
        lines += ["", f"{title}; newer events, hidden from it:", *newer, f"{title} with:", *history]
    return "\n".join(lines)


def event_lines(
    dataset: StreamsDataset, where: UserRows, stream: str, *, items: Vocabulary | None, span: slice
) -> list[str]:
    """A table of a stretch of a user's stream, with a heading, or one line that tells that it is empty."""
    spec, users = dataset.manifest.spec, where.shard.users
    names = [
        "item",
        "timestamp_ms",
        "action_mask",
        "intensity",
        *(f"ctx_{field.name}" for field in spec.token_contexts),
    ]
    columns = {name: users.list(f"{stream}.{name}").row(where.user_row) for name in names}
    indices = range(*span.indices(len(columns["item"])))
    rows = [
        (
            index,
            time_text(columns["timestamp_ms"][index]),
            item_text(columns["item"][index], items),
            action_names(columns["action_mask"][index], spec.actions),
            *(columns[name][index] for name in names[3:]),
        )
        for index in indices
    ]
    headings = ("index", "time (UTC)", "item", "actions", *(name.removeprefix("ctx_") for name in names[3:]))
    return table(headings, rows) if rows else ["  none"]


def load_items(dataset: StreamsDataset, vocab: Path) -> Vocabulary | None:
    """The vocabulary of items that the dataset was built with; None when it is not in `vocab`."""
    if not (vocab / VOCABULARY_FILE).is_file():
        return None
    vocabularies = VocabularySet.load(vocab)
    return vocabularies.field("item") if vocabularies.hash == dataset.manifest.vocabulary_hash else None


def item_text(row: int, items: Vocabulary | None) -> str:
    """The raw id of an item's row; `row N` without a vocabulary."""
    if items is None:
        return f"row {row}"
    return str(items.keys[int(row) - FIRST_KEY]) if row >= FIRST_KEY else "rare"


def action_names(mask: int, actions: Sequence[str]) -> str:
    """Names of a mask's set bits."""
    return " ".join(decode_actions(int(mask), actions)) or "-"


def time_text(timestamp_ms: int) -> str:
    """UTC time to the millisecond."""
    time = datetime.datetime(1970, 1, 1) + datetime.timedelta(milliseconds=int(timestamp_ms))
    return time.isoformat(sep=" ", timespec="milliseconds")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a table, indented, each column as wide as its widest cell."""
    cells = [headings, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    ]


def _shown(count: int, limit: int) -> str:
    return f" (the first {limit})" if count > limit else ""
