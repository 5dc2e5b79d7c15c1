"""What must hold in every shard of a streams dataset. Each check returns figures or names the first user it fails for.

Figures are merged over shards by the start of their name: `max_` and `min_` as such, all others are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from features.actions import mask_of
from features.config import FeaturesConfig
from features.dataset import Columns, Shard
from features.errors import DataError
from features.hashing import shard_of
from features.jagged import Jagged
from features.shard import EVAL, TRAIN
from features.spec import FeatureSpec

Figures = dict[str, int]


@dataclass(frozen=True)
class Rules:
    """What the shards are held against."""

    features: FeaturesConfig
    spec: FeatureSpec
    cut_ms: int
    num_shards: int


class CheckError(DataError):
    """A check failed for a user."""

    def __init__(self, user_id: int, problem: str) -> None:
        super().__init__(f"user {user_id}: {problem}")


def merge_figures(first: Figures, second: Figures) -> Figures:
    """Figures of two sets of shards taken together."""
    merged = dict(first)
    for name, value in second.items():
        if name not in merged:
            merged[name] = value
        elif name.startswith("max_"):
            merged[name] = max(merged[name], value)
        elif name.startswith("min_"):
            merged[name] = min(merged[name], value)
        else:
            merged[name] += value
    return merged


def check_users(shard: Shard, index: int, rules: Rules) -> Figures:
    """Users ascend, none comes twice, and each is in the shard that its id says."""
    user_id = shard.users.column("user_id")
    _require(user_id[1:] > user_id[:-1], user_id[1:], "is not above the user before")
    _require(shard_of(user_id, rules.num_shards) == index, user_id, "belongs to another shard")
    return {"users": len(user_id)}


def check_offsets(shard: Shard, index: int, rules: Rules) -> Figures:
    """All columns of a stream have the same lengths; those of the candidates share their offsets."""
    user_id = shard.users.column("user_id")
    figures = {}
    for stream in rules.spec.streams:
        lengths = shard.users.list(f"{stream}.item").lengths
        for name, other in _lists(shard.users, stream):
            _require(other.lengths == lengths, user_id, f"{name} and {stream}.item differ in length")
        figures[f"{stream}_events"] = int(lengths.sum())
    return {**figures, "candidates": len(shard.requests.list("candidate.item").values)}


def check_newest_first(shard: Shard, index: int, rules: Rules) -> Figures:
    """No event comes after an older one: in the streams, within a request, and from request to request of a user."""
    user_id, user_of_requests = shard.users.column("user_id"), _user_of_requests(shard)
    pairs = 0
    for stream in rules.spec.streams:
        pairs += _require_descending(shard.users.list(f"{stream}.timestamp_ms"), user_id, stream)
    pairs += _require_descending(shard.requests.list("candidate.timestamp_ms"), user_of_requests, "candidate")
    user_row, request_ms = shard.requests.column("user_row"), shard.requests.column("request_ms")
    _require(user_row[1:] >= user_row[:-1], user_of_requests[1:], "requests are not in the order of the users")
    in_order = (user_row[1:] != user_row[:-1]) | (request_ms[1:] <= request_ms[:-1])
    _require(in_order, user_of_requests[1:], "requests are not newest first")
    return {"pairs": pairs}


def check_history(shard: Shard, index: int, rules: Rules) -> Figures:
    """A request's history is all of its user's events that are strictly older than its oldest candidate."""
    user_row, user_of_requests = shard.requests.column("user_row"), _user_of_requests(shard)
    request_ms = shard.requests.column("request_ms")
    figures = {}
    for stream in rules.spec.streams:
        times = shard.users.list(f"{stream}.timestamp_ms")
        start, length = shard.requests.column(f"{stream}_start").astype(np.int64), times.lengths.take(user_row)
        _require((start >= 0) & (start <= length), user_of_requests, f"{stream}_start is outside of the stream")
        first = times.offsets.take(user_row) + start
        padded = np.concatenate([times.values, np.zeros(1, np.int64)])  # gathers below may look one past the end
        older = (start == length) | (padded.take(first) < request_ms)
        _require(older, user_of_requests, f"the history in {stream} holds an event that is not older than the request")
        complete = (start == 0) | (padded.take(first - 1) >= request_ms)
        _require(complete, user_of_requests, f"the history in {stream} leaves out an older event")
        figures[f"{stream}_history"] = int((length - start).sum())
        figures[f"{stream}_requests_without_history"] = int((start == length).sum())
    return figures


def check_requests(shard: Shard, index: int, rules: Rules) -> Figures:
    """Requests are as large and as close as the settings allow, and request_ms is the oldest candidate's time."""
    users, times = _user_of_requests(shard), shard.requests.list("candidate.timestamp_ms")
    lengths, settings = times.lengths, rules.features.requests
    _require(lengths >= 1, users, "a request has no candidate")
    _require(lengths <= settings.max_candidates, users, f"a request has over {settings.max_candidates} candidates")
    oldest = times.values.take(times.offsets[1:] - 1)
    _require(shard.requests.column("request_ms") == oldest, users, "request_ms is not the oldest candidate's time")
    close = ~_within_rows(times) | (times.values[:-1] - times.values[1:] <= settings.gap_ms)
    _require(close, users, f"candidates are over {settings.gap_ms} ms apart", offsets=times.offsets)
    return {"requests": len(lengths), "max_candidates": int(lengths.max(initial=0))}


def check_candidates(shard: Shard, index: int, rules: Rules) -> Figures:
    """Every impression is a candidate exactly once: a user's candidates, in order, are its consumption stream."""
    user_id = shard.users.column("user_id")
    shown, candidates = shard.users.list("consumption.item"), shard.requests.list("candidate.item")
    counts = np.zeros(len(user_id), np.int64)
    np.add.at(counts, shard.requests.column("user_row"), candidates.lengths)
    _require(counts == shown.lengths, user_id, "has not as many candidates as impressions")
    names = [field.name for field in rules.spec.item_fields]
    names += ["timestamp_ms", "action_mask"]
    names += [f"ctx_{c.name}" for c in rules.spec.candidate_contexts if c in rules.spec.token_contexts]
    for name in names:
        same = shard.users.list(f"consumption.{name}").values == shard.requests.list(f"candidate.{name}").values
        _require(same, user_id, f"candidate.{name} and consumption.{name} differ", offsets=shown.offsets)
    return {"impressions": len(shown.values), "candidates": len(candidates.values)}


def check_split(shard: Shard, index: int, rules: Rules) -> Figures:
    """Train candidates < cut <= evaluation candidates."""
    users, split = _user_of_requests(shard), shard.requests.column("split")
    _require((split == TRAIN) | (split == EVAL), users, "split is neither 0 nor 1")
    times = shard.requests.list("candidate.timestamp_ms")
    is_eval = np.repeat(split == EVAL, times.lengths)
    right = is_eval == (times.values >= rules.cut_ms)
    _require(right, users, "a candidate is on the other side of the evaluation cut", offsets=times.offsets)
    train, evaluation = times.values[~is_eval], times.values[is_eval]
    figures = {"train_requests": int((split == TRAIN).sum()), "eval_requests": int((split == EVAL).sum())}
    figures |= {"train_candidates": len(train), "eval_candidates": len(evaluation)}
    if len(train):
        figures["max_train_ms"] = int(train.max())
    if len(evaluation):
        figures["min_eval_ms"] = int(evaluation.min())
    return figures


def check_streams(shard: Shard, index: int, rules: Rules) -> Figures:
    """A stream's events carry one of its actions, and where consumption holds all events none of them is missing."""
    user_id = shard.users.column("user_id")
    consumption = shard.users.list("consumption.action_mask")
    figures = {}
    for stream, actions in rules.features.streams.items():
        masks = shard.users.list(f"{stream}.action_mask")
        belongs = _belongs(masks.values, actions, rules.features)
        _require(belongs, user_id, f"{stream} holds an event without any of its actions", offsets=masks.offsets)
        if rules.features.streams["consumption"] == "all":
            wanted = np.concatenate([[0], np.cumsum(_belongs(consumption.values, actions, rules.features))])
            counts = np.diff(wanted[consumption.offsets])
            _require(counts == masks.lengths, user_id, f"{stream} has not all of the events with its actions")
        figures[f"{stream}_users"] = int((masks.lengths > 0).sum())
    return figures


def check_codes(shard: Shard, index: int, rules: Rules) -> Figures:
    """Every code is below the size that the manifest gives its field, and no mask has a bit without an action."""
    checked = 0
    user_id, user_of_requests = shard.users.column("user_id"), _user_of_requests(shard)
    for name, size in _sized_columns(rules.spec):
        columns, users = (shard.requests, user_of_requests) if name.startswith("candidate.") else (shard.users, user_id)
        jagged = columns.list(name) if "." in name else None
        codes = columns.column(name) if jagged is None else jagged.values
        offsets = None if jagged is None else jagged.offsets
        _require((codes >= 0) & (codes < size), users, f"{name} has a code outside of [0, {size})", offsets=offsets)
        checked += len(codes)
    return {"codes": checked}


CHECKS: dict[str, Callable[[Shard, int, Rules], Figures]] = {
    "users": check_users,
    "offsets": check_offsets,
    "newest_first": check_newest_first,
    "history": check_history,
    "requests": check_requests,
    "candidates": check_candidates,
    "split": check_split,
    "streams": check_streams,
    "codes": check_codes,
}


def check_shard(shard: Shard, index: int, rules: Rules) -> dict[str, Figures]:
    """Figures of every check by its name.

    Raises:
        DataError: names the shard, the check and the first user it fails for.
    """
    figures = {}
    for name, check in CHECKS.items():
        try:
            figures[name] = check(shard, index, rules)
        except CheckError as error:
            raise DataError(f"{shard.users.path.parent}: check '{name}': {error}") from None
    return figures


def _sized_columns(spec: FeatureSpec) -> Iterator[tuple[str, int]]:
    for field in spec.user_fields:
        yield field.name, field.size
    for owner, contexts in [*((s, spec.token_contexts) for s in spec.streams), ("candidate", spec.candidate_contexts)]:
        yield from ((f"{owner}.{field.name}", field.size) for field in spec.item_fields)
        yield from ((f"{owner}.ctx_{field.name}", field.size) for field in contexts)
        yield f"{owner}.action_mask", 1 << len(spec.actions)
        if owner != "candidate":
            yield f"{owner}.intensity", spec.intensity_size


def _lists(columns: Columns, owner: str) -> Iterator[tuple[str, Jagged]]:
    for field in columns.schema:
        if field.name.startswith(f"{owner}."):
            yield field.name, columns.list(field.name)


def _belongs(masks: np.ndarray, actions: object, features: FeaturesConfig) -> np.ndarray:
    if actions == "all":
        return np.ones(len(masks), bool)
    assert isinstance(actions, tuple)
    return masks & np.uint32(mask_of(actions, features.actions)) != 0


def _user_of_requests(shard: Shard) -> np.ndarray:
    """(R,) raw user ids."""
    user_id, user_row = shard.users.column("user_id"), shard.requests.column("user_row")
    if len(user_row) and (user_row.min() < 0 or user_row.max() >= len(user_id)):
        raise DataError(f"{shard.requests.path}: user_row is outside of users.arrow")
    return user_id.take(user_row)


def _within_rows(jagged: Jagged) -> np.ndarray:
    """(T - 1,) bool: values t and t + 1 are of the same row."""
    same = np.ones(max(len(jagged.values) - 1, 0), bool)
    starts = jagged.offsets[1:-1]
    same[starts[(starts > 0) & (starts < len(jagged.values))] - 1] = False
    return same


def _require_descending(times: Jagged, users: np.ndarray, owner: str) -> int:
    within = _within_rows(times)
    ordered = ~within | (times.values[:-1] >= times.values[1:])
    _require(ordered, users, f"{owner}.timestamp_ms is not newest first", offsets=times.offsets)
    return int(within.sum())


def _require(holds: np.ndarray, users: np.ndarray, problem: str, *, offsets: np.ndarray | None = None) -> None:
    """Names the user of the first element for which the condition does not hold.

    Args:
        holds: bool for each row, or for each value of a jagged column.
        users: (rows,) raw ids.
        problem: what it means that it does not hold.
        offsets: (rows + 1,) of the jagged column.
    """
    if holds.all():
        return
    index = int(np.flatnonzero(~holds)[0])
    row = index if offsets is None else int(np.searchsorted(offsets, index, side="right")) - 1
    raise CheckError(int(users[row]), problem)
