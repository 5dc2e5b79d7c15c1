"""The comparisons of a night with the night before: its new days against the days that were known then."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from operator import add

from features.calendar import MS_PER_DAY, hour_lengths
from features.config import Closed
from features.drift import (
    Check,
    Distribution,
    Thresholds,
    check_distribution,
    check_factor,
    check_list,
    check_rate,
    check_share,
)
from features.profile import HOURS, DayProfile, FileRows, Profile
from features.vocabulary import FIRST_KEY

# An hour with fewer events a day before may well have none now.
_MIN_HOUR_EVENTS = 20
# A distribution over users needs fewer of them than one over events needs events.
_EVENTS_PER_USER = 20


class Comparison(Closed):
    """All checks of a night, and the distributions behind some of them.

    Attributes:
        new_days: those whose events are not the baseline's; without any nothing about days is compared.
    """

    new_days: tuple[str, ...]
    checks: tuple[Check, ...]
    distributions: tuple[Distribution, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Those that found drift."""
        return tuple(check for check in self.checks if check.verdict == "drift")


@dataclass(frozen=True)
class _Sides:
    """What is compared: the sum of the known days with the sum of the new ones, and as many of the last known days."""

    before: DayProfile
    num_before: int
    now: DayProfile
    num_now: int
    last_before: DayProfile
    last_now: DayProfile


def compare(before: Profile, now: Profile, limits: Thresholds) -> Comparison:
    """Holds a night against the one before.

    Args:
        before: the profile of the last night that was good.
        now: tonight's.
        limits: how much may change.
    """
    fresh = new_days(before, now)
    checks = list(_window_checks(before, now, limits))
    distributions, minimum = list(_length_distributions(before, now)), limits.min_events // _EVENTS_PER_USER
    checks += [check_distribution(distribution, limits, minimum=minimum) for distribution in distributions]
    if fresh and before.days:
        sides = _sides(before, now, fresh)
        of_days = list(_day_distributions(sides, before, now, fresh=fresh))
        distributions += of_days
        checks += [
            *_amount_checks(sides, limits),
            *_action_checks(sides, now.actions, limits),
            *_value_checks(sides, limits),
            *_row_checks(before, now, fresh, limits),
            check_list("hours without events", _missing_hours(before, now, fresh), limit=limits.max_missing_hours),
            check_list("surfaces gone", _gone(of_days, "surface", limits), limit=0),
            *(check_distribution(distribution, limits, minimum=limits.min_events) for distribution in of_days),
        ]
    return Comparison(new_days=tuple(fresh), checks=tuple(checks), distributions=tuple(distributions))


def new_days(before: Profile, now: Profile) -> list[str]:
    """Days of `now` whose events the baseline does not have, late and corrected ones among them, ascending."""
    return [day for day, profile in now.days.items() if _differs(before.days.get(day), profile)]


def _differs(known: DayProfile | None, profile: DayProfile) -> bool:
    """Only what neither the window nor the vocabulary changes tells whether the events are the same."""
    if known is None:
        return True
    parts = ("events", "users", "actions", "hours", "intensity", "duration")
    return any(getattr(known, part) != getattr(profile, part) for part in parts)


def missing_days(profile: Profile) -> list[str]:
    """Days of the window without a row."""
    first, last = (datetime.date.fromisoformat(day) for day in profile.window)
    days = [(first + datetime.timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]
    return [day for day in days if not profile.rows.get(day)]


def _sides(before: Profile, now: Profile, fresh: list[str]) -> _Sides:
    later = [day for day in fresh if day > max(before.days)] or fresh
    width = min(len(later), len(before.days))
    known = list(before.days.values())
    return _Sides(
        before=reduce(add, known),
        num_before=len(known),
        now=reduce(add, (now.days[day] for day in fresh)),
        num_now=len(fresh),
        last_before=reduce(add, known[-width:]),
        last_now=reduce(add, (now.days[day] for day in later)),
    )


def _window_checks(before: Profile, now: Profile, limits: Thresholds) -> Iterator[Check]:
    missing = sorted(set(missing_days(now)) - set(missing_days(before)))
    yield check_list("days without events", missing, limit=limits.max_missing_days)
    yield check_factor("users", before.streams.users, now.streams.users, limit=limits.max_count_factor)
    for field in ("user", "item"):
        sizes = before.vocabulary.get(field, 0), now.vocabulary.get(field, 0)
        yield check_factor(f"vocabulary of {field}", *sizes, limit=limits.max_vocabulary_factor)
    for name, count in now.streams.user_nulls.items():
        known = before.streams.user_nulls.get(name, 0), before.streams.users
        yield check_share(f"users without {name}", known, (count, now.streams.users), limit=limits.max_null_change)


def _amount_checks(sides: _Sides, limits: Thresholds) -> Iterator[Check]:
    for name, before, now in (
        ("events a day", sides.before.events, sides.now.events),
        ("users a day", sides.before.users, sides.now.users),
    ):
        per_day = round(before / sides.num_before), round(now / sides.num_now)
        yield check_factor(name, *per_day, limit=limits.max_count_factor)
    known, seen = sides.last_before, sides.last_now
    shares = (known.new_users, known.users), (seen.new_users, seen.users)
    yield check_share("new users", *shares, limit=limits.max_unknown_change, rises_only=True)


def _action_checks(sides: _Sides, actions: tuple[str, ...], limits: Thresholds) -> Iterator[Check]:
    for name, hits_before, hits_now in zip(actions, sides.before.actions, sides.now.actions, strict=True):
        rates = (hits_before, sides.before.events), (hits_now, sides.now.events)
        yield check_rate(f"rate of {name}", *rates, limits=limits)


def _value_checks(sides: _Sides, limits: Thresholds) -> Iterator[Check]:
    for name, count in sides.now.nulls.items():
        known = sides.before.nulls.get(name, 0), sides.before.events
        yield check_share(f"events without {name}", known, (count, sides.now.events), limit=limits.max_null_change)
    for name, count in sides.last_now.unknown.items():
        known = sides.last_before.unknown.get(name, 0), sides.last_before.events
        found = count, sides.last_now.events
        yield check_share(f"events with unknown {name}", known, found, limit=limits.max_unknown_change, rises_only=True)


def _row_checks(before: Profile, now: Profile, fresh: list[str], limits: Thresholds) -> Iterator[Check]:
    known, found = _duplicates(before, list(before.days)), _duplicates(now, fresh)
    yield check_share("duplicate rows", known, found, limit=limits.max_duplicate_change, rises_only=True)
    changed = {name: rows for name, rows in now.files.items() if before.files.get(name) != rows} or now.files
    yield check_share(
        "quarantined rows",
        _quarantined(before.files),
        _quarantined(changed),
        limit=limits.max_quarantine_change,
        rises_only=True,
    )


def _duplicates(profile: Profile, days: list[str]) -> tuple[int, int]:
    rows = sum(profile.rows.get(day, 0) for day in days)
    return rows - sum(profile.days[day].events for day in days), rows


def _quarantined(files: Mapping[str, FileRows]) -> tuple[int, int]:
    return sum(file.quarantined for file in files.values()), sum(file.read for file in files.values())


def _missing_hours(before: Profile, now: Profile, fresh: list[str]) -> list[str]:
    """Hours of the new days without an event, where the known days had some; hours that the clock skipped are none."""
    usual = reduce(add, before.days.values()).hours
    busy = [hour for hour, events in enumerate(usual) if events >= _MIN_HOUR_EVENTS * len(before.days)]
    return [
        f"{day} {hour:02d}:00"
        for day in fresh
        for hour in busy
        if not now.days[day].hours[hour] and _hour_lengths(day, now)[hour]
    ]


def _hour_lengths(day: str, profile: Profile) -> tuple[int, ...]:
    return tuple(hour_lengths(datetime.date.fromisoformat(day), profile.timezone).tolist())


def _regular_hours(before: Profile, now: Profile, fresh: list[str]) -> list[int]:
    """Hours that are as long as ever on all days: where the clock changes, more or fewer events are no drift."""
    lengths = [_hour_lengths(day, profile) for profile, days in ((before, before.days), (now, fresh)) for day in days]
    return [hour for hour in range(HOURS) if {of_day[hour] for of_day in lengths} == {MS_PER_DAY // HOURS}]


def _gone(distributions: list[Distribution], metric: str, limits: Thresholds) -> list[str]:
    for found in distributions:
        if found.metric == metric and sum(found.now) >= limits.min_events:
            floor = limits.min_vanishing_share * sum(found.before)
            pairs = zip(found.classes, found.before, found.now, strict=True)
            return [name for name, before, now in pairs if before >= max(floor, 1) and not now]
    return []


def _day_distributions(sides: _Sides, before: Profile, now: Profile, *, fresh: list[str]) -> Iterator[Distribution]:
    hours = _regular_hours(before, now, fresh)
    classes = tuple(f"{hour:02d}" for hour in hours)
    counts_of_hours = (tuple(side.hours[hour] for hour in hours) for side in (sides.before, sides.now))
    yield Distribution(metric="hour", classes=classes, before=next(counts_of_hours), now=next(counts_of_hours))
    surfaces = _surfaces(before, sides.before), _surfaces(now, sides.now)
    if any(surfaces[0].values()) and any(surfaces[1].values()):
        names = tuple(dict.fromkeys([*surfaces[0], *surfaces[1]]))
        counts = (tuple(side.get(name, 0) for name in names) for side in surfaces)
        yield Distribution(metric="surface", classes=names, before=next(counts), now=next(counts))
    for metric in ("intensity", "duration"):
        counts_before, counts_now = getattr(sides.before, metric), getattr(sides.now, metric)
        if any(counts_before) and any(counts_now) and len(counts_before) == len(counts_now):
            classes = tuple(str(code) for code in range(len(counts_now)))
            yield Distribution(metric=metric, classes=classes, before=counts_before, now=counts_now)


def _surfaces(profile: Profile, day: DayProfile) -> dict[str, int]:
    """Events by raw surface; two vocabularies may give a surface different rows."""
    names = ["none", "unknown", *(str(key) for key in profile.surfaces)]
    return dict(zip(names[: FIRST_KEY + len(profile.surfaces)], day.surface, strict=False))


def _length_distributions(before: Profile, now: Profile) -> Iterator[Distribution]:
    """Of windows that hold equally many days: with a gap, or while a window is still filling, histories are shorter."""
    if len(before.days) != len(now.days):
        return
    for stream, counts in now.streams.lengths.items():
        known = before.streams.lengths.get(stream)
        if known and sum(known) and sum(counts):
            width = max(_width(known), _width(counts))
            classes = ("0", "1", *(f"{1 << bits}+" for bits in range(1, width)))[:width]
            yield Distribution(
                metric=f"history length in {stream}", classes=classes, before=known[:width], now=counts[:width]
            )


def _width(counts: tuple[int, ...]) -> int:
    return max(index for index, count in enumerate(counts) if count) + 1
