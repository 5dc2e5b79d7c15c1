"""What a dataset looks like, day by day, in a few thousand numbers: what the quality gate compares between two nights.

Counts of disjoint sets of users add up, so each shard is profiled where it lies.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Self

import numpy as np

from features.calendar import MS_PER_DAY, local_ms
from features.config import Closed
from features.dataset import Columns, Shard
from features.spec import FeatureSpec
from features.vocabulary import PADDING, UNKNOWN

HOURS = 24
# Users by the bit length of their number of events: 0, 1, 2-3, 4-7, ...
LENGTH_CLASSES = 32
_EPOCH = datetime.date(1970, 1, 1)
_HOUR_MS = MS_PER_DAY // HOURS
_SHOWN = "consumption"
_MAX_COUNTED_BITS = 10

Counts = tuple[int, ...]


class DayProfile(Closed):
    """The impressions of one local day.

    Attributes:
        users: users with an impression.
        new_users: users whose oldest impression of the window is on this day.
        actions: impressions with each action, in the order of `features.actions`.
        hours: impressions by local hour.
        intensity, duration, surface: impressions by code; empty where the settings have no such context.
        nulls: impressions without a value, by column.
        unknown: impressions whose value is out of vocabulary, by field.
    """

    events: int
    users: int
    new_users: int
    actions: Counts
    hours: Counts
    intensity: Counts
    duration: Counts
    surface: Counts
    nulls: dict[str, int]
    unknown: dict[str, int]

    def __add__(self, other: DayProfile) -> DayProfile:
        return DayProfile(
            events=self.events + other.events,
            users=self.users + other.users,
            new_users=self.new_users + other.new_users,
            actions=add_counts(self.actions, other.actions),
            hours=add_counts(self.hours, other.hours),
            intensity=add_counts(self.intensity, other.intensity),
            duration=add_counts(self.duration, other.duration),
            surface=add_counts(self.surface, other.surface),
            nulls=add_named(self.nulls, other.nulls),
            unknown=add_named(self.unknown, other.unknown),
        )


class StreamsProfile(Closed):
    """A dataset, or some of its users.

    Attributes:
        users: all users.
        days: by ISO date; a day without impressions is missing.
        lengths: users by the bit length of the number of their events, by stream.
        user_nulls: users without a value, by category.
    """

    users: int
    days: dict[str, DayProfile]
    lengths: dict[str, Counts]
    user_nulls: dict[str, int]

    @classmethod
    def empty(cls, spec: FeatureSpec) -> Self:
        """The profile of no user."""
        return cls(
            users=0,
            days={},
            lengths=dict.fromkeys(spec.streams, (0,) * LENGTH_CLASSES),
            user_nulls={field.name: 0 for field in spec.user_fields[1:]},
        )

    def __add__(self, other: StreamsProfile) -> StreamsProfile:
        days = dict(self.days)
        for day, profile in other.days.items():
            days[day] = days[day] + profile if day in days else profile
        return StreamsProfile(
            users=self.users + other.users,
            days=dict(sorted(days.items())),
            lengths={stream: add_counts(counts, other.lengths[stream]) for stream, counts in self.lengths.items()},
            user_nulls=add_named(self.user_nulls, other.user_nulls),
        )


def add_counts(first: Counts, second: Counts) -> Counts:
    """Sums place by place; the shorter one counts as if it ended in zeros."""
    width = max(len(first), len(second))
    pairs = zip(first + (0,) * (width - len(first)), second + (0,) * (width - len(second)), strict=True)
    return tuple(a + b for a, b in pairs)


def add_named(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Sums name by name, over the names of either."""
    return {name: first.get(name, 0) + second.get(name, 0) for name in sorted({*first, *second})}


def profile_shard(shard: Shard, spec: FeatureSpec, timezone: str) -> StreamsProfile:
    """Profiles one shard from its encoded columns.

    Args:
        shard: whole users.
        spec: what is encoded.
        timezone: of the local days and hours.
    """
    users = shard.users
    lengths = {stream: users.list(f"{stream}.item").lengths for stream in spec.streams}
    return StreamsProfile(
        users=users.num_rows,
        days=_days(users, spec, timezone),
        lengths={stream: length_classes(counts) for stream, counts in lengths.items()},
        user_nulls={field.name: int((users.column(field.name) == PADDING).sum()) for field in spec.user_fields[1:]},
    )


def length_classes(lengths: np.ndarray) -> Counts:
    """How many of the lengths have each bit length."""
    classes = np.frexp(lengths.astype(np.float64))[1]
    return _histogram(classes, LENGTH_CLASSES)


def _days(users: Columns, spec: FeatureSpec, timezone: str) -> dict[str, DayProfile]:
    times = users.list(f"{_SHOWN}.timestamp_ms")
    if not len(times.values):
        return {}
    clock = local_ms(times.values, timezone)
    day = clock // MS_PER_DAY
    first, last = int(day.min()), int(day.max())
    day -= first
    num_days = last - first + 1
    visits = _visits(day, times.lengths)
    columns = {
        "actions": _action_counts(day, users.list(f"{_SHOWN}.action_mask").values, num_days, len(spec.actions)),
        "hours": _by_day(day, clock % MS_PER_DAY // _HOUR_MS, num_days, HOURS),
        "intensity": _by_day(day, users.list(f"{_SHOWN}.intensity").values, num_days, spec.intensity_size),
        **{
            name: _by_day(day, users.list(f"{_SHOWN}.ctx_{name}").values, num_days, size)
            for name, size in ((c.name, c.size) for c in spec.token_contexts if c.name in ("duration", "surface"))
        },
    }
    nulls, unknown = _gaps(users, spec, day, num_days)
    owner = day[times.offsets[1:][times.lengths > 0] - 1]
    counts = np.bincount(day, minlength=num_days)
    num_users, num_new = np.bincount(visits, minlength=num_days), np.bincount(owner, minlength=num_days)
    return {
        (_EPOCH + datetime.timedelta(days=first + index)).isoformat(): DayProfile(
            events=int(counts[index]),
            users=int(num_users[index]),
            new_users=int(num_new[index]),
            **{
                name: tuple(columns[name][index].tolist()) if name in columns else ()
                for name in ("actions", "hours", "intensity", "duration", "surface")
            },
            nulls={name: int(values[index]) for name, values in nulls.items()},
            unknown={name: int(values[index]) for name, values in unknown.items()},
        )
        for index in np.flatnonzero(counts).tolist()
    }


def _visits(day: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The day of each (user, day) with an impression; a user's days descend, so equal ones are adjacent."""
    user = np.repeat(np.arange(len(lengths)), lengths)
    begins = np.ones(len(day), bool)
    begins[1:] = (user[1:] != user[:-1]) | (day[1:] != day[:-1])
    return day[begins]


def _by_day(day: np.ndarray, codes: np.ndarray, num_days: int, size: int) -> np.ndarray:
    """(num_days, size) counts."""
    return np.bincount(day * size + codes, minlength=num_days * size).reshape(num_days, size)


def _action_counts(day: np.ndarray, masks: np.ndarray, num_days: int, num_actions: int) -> np.ndarray:
    """(num_days, num_actions) counts."""
    if num_actions <= _MAX_COUNTED_BITS:  # few patterns, counted in one pass
        patterns = _by_day(day, masks, num_days, 1 << num_actions)
        carries = np.arange(1 << num_actions)[:, None] >> np.arange(num_actions) & 1
        return patterns @ carries
    bits = (day[masks >> np.uint32(bit) & np.uint32(1) == 1] for bit in range(num_actions))
    return np.stack([np.bincount(days, minlength=num_days) for days in bits], axis=1)


def _gaps(
    users: Columns, spec: FeatureSpec, day: np.ndarray, num_days: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Impressions without a value, and those with one that is out of vocabulary, by day and name."""
    nulls, unknown = {}, {}

    def count(name: str, codes: np.ndarray, *, has_rows: bool) -> None:
        nulls[name] = np.bincount(day[codes == PADDING], minlength=num_days)
        if has_rows:
            unknown[name] = np.bincount(day[codes == UNKNOWN], minlength=num_days)

    for field in spec.item_fields:
        count(field.name, users.list(f"{_SHOWN}.{field.name}").values, has_rows=True)
    for context in spec.token_contexts:
        if context.name in ("surface", "duration"):
            codes = users.list(f"{_SHOWN}.ctx_{context.name}").values
            count(context.name, codes, has_rows=context.name == "surface")
    count("intensity", users.list(f"{_SHOWN}.intensity").values, has_rows=False)
    of_users = np.repeat(users.column("user"), users.list(f"{_SHOWN}.item").lengths)
    unknown["user"] = np.bincount(day[of_users == UNKNOWN], minlength=num_days)
    return nulls, unknown


def _histogram(codes: np.ndarray, size: int) -> Counts:
    return tuple(np.bincount(codes, minlength=size)[:size].tolist())


class FileRows(Closed):
    """The account of a raw file."""

    read: int
    quarantined: int


class Profile(Closed):
    """A whole dataset as the quality gate sees it.

    Attributes:
        version: of this layout.
        timezone: of the days and hours.
        window: first and last ISO date that the dataset should have.
        rows: good rows of each day as they came, exact duplicates included.
        files: by name.
        vocabulary: rows by field.
        actions: names of the places of `DayProfile.actions`.
        surfaces: raw keys of the vocabulary rows from 2 on.
        content_checksum: of the dataset.
    """

    version: int
    timezone: str
    window: tuple[str, str]
    streams: StreamsProfile
    rows: dict[str, int]
    files: dict[str, FileRows]
    vocabulary: dict[str, int]
    actions: tuple[str, ...]
    surfaces: tuple[int, ...]
    content_checksum: str

    @property
    def days(self) -> dict[str, DayProfile]:
        """By ISO date, ascending."""
        return self.streams.days
