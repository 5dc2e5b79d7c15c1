"""The vocab stage: training days only, counts that add up, rows that stay from one night to the next."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.config import FeaturesConfig
from features.errors import DataError
from features.files import read_json, write_json
from features.schema import EVENTS, side_table_schema
from features.vocabulary import FIRST_KEY, VocabularySet
from pipelines.ingest import ingest
from pipelines.vocab import build_vocabularies
from pipelines.vocab_base import check_base

FIRST_MS = 1_650_556_800_000  # 2022-04-22 00:00 in Shanghai
DAY_MS = 86_400_000
FEATURES = {"item_categories": ["author", "tag"], "user_categories": ["city"]}

Event = tuple[int, int, int, int | None]  # day, user, item, surface


@pytest.fixture
def write_events(tmp_path: Path) -> Callable[..., Path]:
    """Writes the directory that ingest would, one partition a day."""

    def write(events: list[Event], name: str = "events", num_days: int | None = None) -> Path:
        folder = tmp_path / name
        rows: dict[int, list[dict[str, Any]]] = collections.defaultdict(list)
        for number, (day, user, item, surface) in enumerate(events):
            event = {"user_id": user, "item_id": item, "timestamp_ms": FIRST_MS + day * DAY_MS, "action_mask": 0}
            rows[day].append(event | {"surface": surface, "source_order": number})
        for day, values in rows.items():
            partition = folder / f"date=2022-04-{22 + day}"
            partition.mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist(values, EVENTS), partition / "part-000.parquet", row_group_size=4)
        last_day = max(rows) if num_days is None else num_days - 1
        write_json(folder / "stats.json", {"last_day": f"2022-04-{22 + last_day}", "kept": len(events)})
        items = [{"item_id": item, "author": f"a{item % 3}", "tag": None if item == 1 else "t"} for item in range(8)]
        users = [{"user_id": user, "city": "x" if user else None} for user in range(3)]
        pq.write_table(
            pa.Table.from_pylist(items, side_table_schema("item_id", ("author", "tag"))), folder / "items.parquet"
        )
        pq.write_table(pa.Table.from_pylist(users, side_table_schema("user_id", ("city",))), folder / "users.parquet")
        return folder

    return write


@pytest.fixture
def build(tmp_path: Path, write_params: Callable[..., Path]) -> Callable[..., Path]:
    """Runs the stage and returns its directory."""

    def run(
        events: Path,
        name: str = "vocab",
        *,
        min_count: int = 1,
        base: Path | None = None,
        eval_days: int = 1,
        **pipelines: int,
    ) -> Path:
        vocabulary = {"min_count": min_count, "base": None if base is None else str(base)}
        params = write_params(
            tmp_path,
            data={"eval_days": eval_days},
            features={**FEATURES, "vocabulary": vocabulary},
            pipelines=pipelines,
        )
        build_vocabularies(params, events, tmp_path / name)
        return tmp_path / name

    return run


def counts_of(directory: Path, field: str) -> dict[Any, int]:
    saved = pq.read_table(directory / f"{field}.parquet")
    return dict(zip(saved["key"].to_pylist(), saved["count"].to_pylist(), strict=True))


def test_keys_are_counted_over_the_training_days(write_events: Callable[..., Path], build: Callable[..., Path]) -> None:
    train: list[Event] = [(0, 1, 1, 3), (0, 1, 2, 3), (1, 0, 4, None), (1, 5, 4, 1)]
    out = build(write_events([*train, (2, 1, 6, 3), (2, 8, 1, 9)]))
    assert counts_of(out, "user") == {0: 1, 1: 2, 5: 1}
    assert counts_of(out, "item") == {1: 1, 2: 1, 4: 2}
    assert counts_of(out, "surface") == {1: 1, 3: 2}
    assert counts_of(out, "author") == {"a1": 3, "a2": 1}
    assert counts_of(out, "tag") == {"t": 3}
    assert counts_of(out, "city") == {"x": 2}
    assert list(VocabularySet.load(out).sizes) == ["user", "item", "surface", "author", "tag", "city"]


def test_rare_keys_get_no_row(write_events: Callable[..., Path], build: Callable[..., Path]) -> None:
    events: list[Event] = [(0, 1, 1, 3), (0, 1, 2, 3), (0, 2, 2, 4), (1, 1, 1, 3)]
    out = build(write_events(events), min_count=2)
    assert counts_of(out, "user") == {1: 2}
    assert counts_of(out, "item") == {2: 2}
    assert VocabularySet.load(out).field("item").lookup(pa.array([1, 2])).tolist() == [1, FIRST_KEY]


def test_the_shares_of_unknown_events(write_events: Callable[..., Path], build: Callable[..., Path]) -> None:
    train: list[Event] = [(0, 1, 1, 3), (0, 1, 1, 3), (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 3, 3)]
    out = build(write_events([*train, (1, 1, 1, 3), (1, 1, 3, None), (1, 1, 7, 3), (1, 1, 2, 3)]), min_count=2)
    stats = read_json(out / "stats.json")
    assert stats["item"]["size"] == 4
    assert stats["item"]["train"] == {"events": 5, "unknown": 1, "unknown_share": 0.2}
    assert stats["item"]["eval"] == {"events": 4, "unknown": 2, "unknown_share": 0.5}
    assert stats["surface"]["eval"] == {"events": 3, "unknown": 0, "unknown_share": 0.0}


def random_events(num_days: int) -> list[Event]:
    rng = np.random.default_rng(3)
    return [
        (int(rng.integers(num_days)), int(rng.integers(9)), int(rng.integers(30)), int(rng.integers(4)))
        for _ in range(60 * num_days)
    ]


def test_more_days_append_to_the_base(write_events: Callable[..., Path], build: Callable[..., Path]) -> None:
    events = random_events(5)
    first = build(write_events([event for event in events if event[0] < 3], "first"), "vocab1", min_count=3)
    second = build(write_events(events, "second"), "vocab2", min_count=3, base=first)
    third = build(write_events(events, "third"), "vocab3", min_count=3)
    old, new, fresh = (VocabularySet.load(path) for path in (first, second, third))
    appended = 0
    for field in old.sizes:
        keys, more = old.field(field).keys.to_pylist(), new.field(field).keys.to_pylist()
        assert more[: len(keys)] == keys
        assert more[len(keys) :] == sorted(more[len(keys) :])
        assert sorted(more) == fresh.field(field).keys.to_pylist()
        appended += len(more) - len(keys)
    assert appended > 0
    assert new.hash != old.hash


def test_the_same_bytes_whatever_the_workers_and_units(
    write_events: Callable[..., Path], build: Callable[..., Path]
) -> None:
    events = write_events(random_events(4))
    runs = [
        build(events, "one", num_workers=1),
        build(events, "two", num_workers=2, rows_per_unit=7),
        build(events, "three", num_workers=2, rows_per_unit=1000),
    ]
    digests = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in run.iterdir()} for run in runs]
    assert len(digests[0]) == 6 + 2
    assert digests[0] == digests[1] == digests[2]


@pytest.mark.parametrize(("num_days", "eval_days"), [(1, 1), (3, 3), (2, 4)])
def test_too_few_days(
    write_events: Callable[..., Path], build: Callable[..., Path], tmp_path: Path, num_days: int, eval_days: int
) -> None:
    events = write_events([(day, 1, 1, 1) for day in range(num_days)])
    with pytest.raises(DataError) as error:
        build(events, eval_days=eval_days)
    assert str(error.value) == (
        f"{events}: no events before the evaluation window: data.eval_days = {eval_days} covers all days"
    )
    assert not (tmp_path / "vocab").exists()


def test_a_day_without_events_still_counts_as_a_day(
    write_events: Callable[..., Path], build: Callable[..., Path]
) -> None:
    out = build(write_events([(0, 1, 1, 1), (1, 2, 2, 1), (3, 3, 3, 1)]), eval_days=2)
    assert counts_of(out, "user") == {1: 1, 2: 1}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("stats.json", "events/stats.json: no such file"),
        ("items.parquet", "events/items.parquet: no such file; run the ingest stage again"),
        ("date=2022-04-22/part-000.parquet", "events/date=2022-04-22/part-000.parquet: cannot be read as Parquet"),
    ],
)
def test_missing_or_damaged_events(
    write_events: Callable[..., Path], build: Callable[..., Path], name: str, message: str
) -> None:
    events = write_events([(0, 1, 1, 1), (1, 2, 2, 1)])
    if "part" in name:
        (events / name).write_bytes((events / name).read_bytes()[:-5])
    if name.endswith("json") or name.startswith("items"):
        (events / name).unlink()
    with pytest.raises(DataError) as error:
        build(events)
    assert message in str(error.value)


def test_the_real_slice(real_data: Path, write_params: Callable[..., Path], tmp_path: Path) -> None:
    features = {"item_categories": ["author", "tag"], "user_categories": ["user_active_degree"]}
    params = write_params(real_data / "kuairand_pure_slice", features=features)
    ingest(params, tmp_path / "events", tmp_path / "quarantine")
    build_vocabularies(params, tmp_path / "events", tmp_path / "vocab")
    stats = read_json(tmp_path / "vocab" / "stats.json")
    for description in stats.values():
        assert description["train"]["events"] <= 228_329 - description["eval"]["events"]
    assert stats["user"]["train"]["events"] + stats["user"]["eval"]["events"] == 228_329
    vocabularies = VocabularySet.load(tmp_path / "vocab")
    assert vocabularies.field("user_active_degree").keys.to_pylist().count("full_active") == 1
    days = sorted(path for path in (tmp_path / "events").glob("date=*"))[:-4]
    users = np.concatenate([pq.read_table(day)["user_id"].to_numpy() for day in days])
    keys, counts = np.unique(users, return_counts=True)
    assert vocabularies.field("user").keys.to_pylist() == keys[counts >= 2].tolist()
    assert vocabularies.field("user").counts.tolist() == counts[counts >= 2].tolist()


def test_the_same_chain_of_nights_gives_the_same_bytes(
    write_events: Callable[..., Path], build: Callable[..., Path], tmp_path: Path
) -> None:
    """Rebuilt from the raw days in the same order, a night's vocabulary is the one that was kept."""
    nights = [[event for event in random_events(5) if event[0] <= night] for night in (2, 3, 4)]
    chains = []
    for name in ("a", "b"):
        base = None
        for number, events in enumerate(nights):
            base = build(write_events(events, f"events-{name}{number}"), f"vocab-{name}{number}", base=base)
        assert base is not None
        chains.append({path.name: path.read_bytes() for path in base.iterdir() if path.suffix in (".parquet", ".json")})
    assert chains[0] == chains[1]


def test_a_vocabulary_tells_what_it_was_appended_to(
    write_events: Callable[..., Path], build: Callable[..., Path], tmp_path: Path
) -> None:
    first = build(write_events([(0, 1, 1, 1), (1, 2, 2, 1)], "first"), "vocab1")
    second = build(write_events([(0, 1, 1, 1), (1, 3, 2, 1)], "second"), "vocab2", base=first)
    features = FeaturesConfig.load(tmp_path / "params.yaml")
    check_base(second, features)
    with pytest.raises(DataError, match=r"was appended to vocabulary none, features\.vocabulary\.base is \w{12}"):
        check_base(first, features)
    build(write_events([(0, 2, 1, 1), (1, 5, 2, 1)], "third"), "vocab1")  # another vocabulary takes the base's place
    with pytest.raises(DataError, match="run the vocab stage again"):
        check_base(second, features)
