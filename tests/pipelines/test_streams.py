from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipelines.shard_build
import pipelines.streams
from features.dataset import open_dataset
from features.errors import DataError
from features.files import read_json, write_json
from features.schema import EVENTS, side_table_schema
from features.shard import EVAL
from features.vocabulary import Vocabulary, VocabularySet, key_type
from pipelines.events import Unit, plan_units, read_unit
from pipelines.shard_build import SpillUnit
from pipelines.streams import build_streams

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000
NUM_DAYS = 5
NUM_ROWS = 600


def make_events(num_rows: int = NUM_ROWS, seed: int = 1) -> pa.Table:
    """Events of few users and items over five days but the third, with pages and 30 exact duplicates."""
    rng = np.random.default_rng(seed)
    num_rows -= 30
    days = rng.choice([0, 1, 3, 4], num_rows)
    columns: dict[str, np.ndarray] = {
        "user_id": rng.integers(0, 25, num_rows) * 1_000_003,
        "item_id": rng.integers(0, 9, num_rows),
        "timestamp_ms": days * DAY_MS + rng.integers(0, 20, num_rows) * 4_000_000,
        "action_mask": rng.choice([0, 1, 2, 128, 3], num_rows),
        "watch_ms": rng.integers(0, 9000, num_rows),
        "duration_ms": rng.integers(0, 9000, num_rows),
        "surface": rng.integers(0, 3, num_rows),
    }
    repeats = rng.integers(0, num_rows, 30)
    arrays = []
    for field in EVENTS:
        if field.name == "source_order":
            arrays.append(pa.array(np.arange(num_rows + 30), field.type))
        elif field.name == "value":
            arrays.append(pa.nulls(num_rows + 30, field.type))
        else:
            values = columns[field.name]
            arrays.append(pa.array(np.concatenate([values, values[repeats]]), field.type))
    return pa.table(arrays, schema=EVENTS)


def write_events(directory: Path, events: pa.Table, *, rows_per_file: int = 10**9, rows_per_group: int = 50) -> None:
    """The EVENTS directory of these rows: by day, in the order in which they come."""
    days = events.column("timestamp_ms").to_numpy() // DAY_MS
    directory.mkdir()
    for day in np.unique(days).tolist():
        folder = directory / f"date={datetime.date(1970, 1, 1 + day)}"
        folder.mkdir()
        rows = events.filter(pa.array(days == day))
        for part, start in enumerate(range(0, rows.num_rows, rows_per_file)):
            pq.write_table(
                rows.slice(start, rows_per_file), folder / f"part-{part:03d}.parquet", row_group_size=rows_per_group
            )
    items = [[0, 1, 2, 3], ["a", "b", "c", None]]
    pq.write_table(pa.table(items, schema=side_table_schema("item_id", ("author",))), directory / "items.parquet")
    users = [[0, 1_000_003], ["new", "old"]]
    pq.write_table(pa.table(users, schema=side_table_schema("user_id", ("degree",))), directory / "users.parquet")
    write_json(directory / "stats.json", {"last_day": "1970-01-05"})


Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Runs the stage over an EVENTS directory with other `pipelines` settings; returns the dataset's directory."""
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["data"] |= {"timezone": "UTC", "earliest": "1970-01-01", "eval_days": 2}
    document["features"] |= {"item_categories": ["author"], "user_categories": ["degree"]}
    keys: dict[str, list[Any]] = {
        "user": [user * 1_000_003 for user in range(20)],
        "item": list(range(8)),
        "surface": [0, 1],
        "author": ["a", "b"],
        "degree": ["new"],
    }
    (tmp_path / "vocab").mkdir()
    VocabularySet(
        tuple(Vocabulary(f, pa.array(some, key_type(f)), np.ones(len(some), np.int64)) for f, some in keys.items())
    ).save(tmp_path / "vocab")

    def run(events: Path, name: str = "streams", **settings: Any) -> Path:
        document["pipelines"] |= {"num_workers": 1, "num_shards": 3, **settings}
        params = tmp_path / f"{name}.yaml"
        params.write_text(yaml.safe_dump(document))
        build_streams(params, events, tmp_path / "vocab", tmp_path / name)
        return tmp_path / name

    return run


@pytest.fixture
def events(tmp_path: Path) -> Path:
    write_events(tmp_path / "events", make_events())
    return tmp_path / "events"


def content(directory: Path) -> str:
    return open_dataset(directory).manifest.content_checksum


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_every_row_is_accounted_for(build, events):
    directory = build(events)
    stats, dataset = read_json(directory / "stats.json"), open_dataset(directory)
    assert stats["read"] == NUM_ROWS == stats["events"] + stats["duplicates"]
    assert stats["duplicates"] >= 30
    assert stats["users"] == 25 == sum(shard.users.num_rows for shard in dataset.shards)
    assert stats["candidates"] == stats["events"] == stats["streams"]["consumption"]["events"]
    splits = np.concatenate([shard.requests.column("split") for shard in dataset.shards])
    assert stats["requests"] == {"train": int((splits != EVAL).sum()), "eval": int((splits == EVAL).sum())}
    assert dataset.manifest.cut_ms == stats["cut_ms"] == 3 * DAY_MS
    masks = np.concatenate([shard.users.list("interaction.action_mask").values for shard in dataset.shards])
    assert stats["streams"]["interaction"]["events"] == len(masks)
    assert stats["streams"]["interaction"]["actions"]["is_like"] == int((masks & 2 != 0).sum())
    lengths = np.concatenate([shard.users.list("consumption.item").lengths for shard in dataset.shards])
    assert stats["streams"]["consumption"]["length_quantiles"]["0.5"] == np.median(lengths)


def test_unknown_values_are_counted(build, events):
    directory = build(events)
    stats, dataset = read_json(directory / "stats.json"), open_dataset(directory)
    items = np.concatenate([shard.requests.list("candidate.item_id").values for shard in dataset.shards])
    assert stats["unknown"]["item"] == int((items >= 8).sum()) > 0
    assert stats["unknown"]["author"] == int((items == 2).sum()) > 0
    assert stats["unknown"]["surface"] > 0
    assert stats["unknown_users"] == {"user": 5, "degree": 1}


def test_nothing_but_the_dataset_is_left(build, events):
    names = {str(path.relative_to(events.parent)) for path in build(events).rglob("*")}
    shards = [f"streams/shard-{index:05d}-of-00003" for index in range(3)]
    files = [f"{shard}/{name}.arrow" for shard in shards for name in ("users", "requests")]
    assert names == {*shards, *files, "streams/stats.json", "streams/manifest.json"}
    assert not [path for path in events.parent.iterdir() if path.name.startswith(".tmp-")]


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("rows_per_unit", [1, 10**6])
def test_workers_and_work_units_do_not_show_in_a_byte(build, events, num_workers, rows_per_unit):
    first = build(events, "first", rows_per_unit=100)
    second = build(events, "second", num_workers=num_workers, rows_per_unit=rows_per_unit)
    assert bytes_of(first) == bytes_of(second)


@pytest.mark.parametrize("num_shards", [1, 8, 100])
def test_the_number_of_shards_does_not_show_in_the_content(build, events, num_shards):
    assert content(build(events, "other", num_shards=num_shards)) == content(build(events))


def test_the_order_of_the_rows_and_their_files_does_not_show_in_a_byte(build, events, tmp_path):
    shuffled = make_events().take(pa.array(np.random.default_rng(0).permutation(NUM_ROWS)))
    write_events(tmp_path / "shuffled", shuffled, rows_per_file=70, rows_per_group=7)
    first, second = bytes_of(build(events, "first")), bytes_of(build(tmp_path / "shuffled", "second"))
    stats = [json.loads(found.pop("stats.json")) for found in (first, second)]
    assert first == second
    assert stats[0].pop("events_digest") != stats[1].pop("events_digest")
    assert stats[0] == stats[1]


def test_another_row_is_another_content(build, events, tmp_path):
    table = make_events()
    first = table.column("watch_ms")[0].as_py()
    watch_ms = pa.array([first + 1, *table.column("watch_ms").to_pylist()[1:]], pa.int32())
    write_events(tmp_path / "other", table.set_column(4, EVENTS.field("watch_ms"), watch_ms))
    assert content(build(events, "first")) != content(build(tmp_path / "other", "second"))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_events_give_a_valid_empty_dataset(build, tmp_path, num_workers):
    write_events(tmp_path / "none", EVENTS.empty_table())
    directory = build(tmp_path / "none", num_workers=num_workers)
    dataset = open_dataset(directory)
    assert [(shard.users.num_rows, shard.requests.num_rows) for shard in dataset.shards] == [(0, 0)] * 3
    assert len(dataset.shards[0].users.list("consumption.item")) == 0
    assert read_json(directory / "stats.json")["streams"]["consumption"]["users"] == 0


def test_spilled_references_carry_every_row_of_a_unit(events, tmp_path):
    units = plan_units(events, 100)
    step = SpillUnit(4, str(tmp_path / "spill"))
    for unit in units:
        assert sum(ref.rows for _, ref in step.process(unit)) == unit.rows
    assert sum(unit.rows for unit in units) == NUM_ROWS
    assert pa.concat_tables([read_unit(unit) for unit in units]).num_rows == NUM_ROWS


class _Loses(SpillUnit):
    def process(self, unit):
        yield from list(super().process(unit))[1:]


class _Doubles(SpillUnit):
    def process(self, unit):
        for ref in super().process(unit):
            yield from (ref, ref)


@pytest.mark.parametrize("spill_unit", [_Loses, _Doubles])
def test_a_runner_that_loses_or_doubles_rows_publishes_nothing(build, events, monkeypatch, spill_unit):
    monkeypatch.setattr(pipelines.shard_build, "SpillUnit", spill_unit)
    with pytest.raises(DataError, match=r"600 rows in the files, \d+ reached the shards; nothing was published"):
        build(events)
    assert not (events.parent / "streams").exists()


def test_a_failed_run_leaves_the_dataset_before_it(build, events):
    before = bytes_of(build(events))
    path = next(events.glob("date=1970-01-04/*.parquet"))
    damaged = bytearray(path.read_bytes())
    damaged[4:400] = bytes(396)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=r"part-000\.parquet"):
        build(events)
    assert bytes_of(events.parent / "streams") == before


class _Replaces(SpillUnit):
    """Puts another file, as long and as good, in the place of the one that was planned."""

    def process(self, unit):
        path = Path(unit.parts[0].path)
        shutil.copy2(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
        yield from super().process(unit)


def test_a_day_file_replaced_while_it_is_read_is_named(build, events, monkeypatch):
    monkeypatch.setattr(pipelines.shard_build, "SpillUnit", _Replaces)
    with pytest.raises(DataError, match=r"part-000\.parquet: was replaced while it was read; run the stage again"):
        build(events)
    assert not (events.parent / "streams").exists()


def test_a_day_file_replaced_after_it_was_read_is_named(build, events, monkeypatch):
    digest = pipelines.streams.events_digest

    def replace_first(directory: Path) -> str:
        path = min(directory.glob("date=*/*.parquet"))
        pq.write_table(pq.read_table(path), path)
        return digest(directory)

    monkeypatch.setattr(pipelines.streams, "events_digest", replace_first)
    with pytest.raises(DataError, match=r"date=1970-01-01/part-000\.parquet: was replaced while it was read"):
        build(events)


def test_a_day_file_that_vanishes_is_named(build, events, monkeypatch):
    planned = pipelines.streams.plan_units

    def plan_and_remove(directory: Path, rows_per_unit: int) -> list[Unit]:
        units = planned(directory, rows_per_unit)
        Path(units[0].parts[0].path).unlink()
        return units

    monkeypatch.setattr(pipelines.streams, "plan_units", plan_and_remove)
    with pytest.raises(DataError, match=r"part-000\.parquet: was removed while it was read"):
        build(events)


@pytest.mark.parametrize("name", ["items.parquet", "users.parquet", "stats.json"])
def test_missing_inputs_are_named(build, events, name):
    (events / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: no such file"):
        build(events)


def test_a_missing_directory_is_named(build, tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*no such"):
        build(tmp_path / "nowhere")


def test_event_files_of_another_schema_are_named(build, events):
    path = next(events.glob("date=1970-01-04/*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.set_column(3, "action_mask", table.column("action_mask").cast(pa.int64())), path)
    with pytest.raises(DataError, match=r"part-000\.parquet: column 'action_mask' has type int64, expected uint32"):
        build(events)


def test_side_tables_without_a_category_of_the_settings_are_named(build, events):
    table = pq.read_table(events / "items.parquet")
    pq.write_table(table.drop_columns(["author"]), events / "items.parquet")
    with pytest.raises(DataError, match=r"items\.parquet: column 'author' is missing"):
        build(events)


def test_vocabularies_without_a_field_of_the_settings_are_refused(build, events):
    vocabularies = VocabularySet.load(events.parent / "vocab").vocabularies
    VocabularySet(tuple(some for some in vocabularies if some.field != "author")).save(events.parent / "vocab")
    with pytest.raises(DataError, match="vocabulary has no field 'author'"):
        build(events)


_SLOW_STAGE = """
import sys, time
from pathlib import Path
import pipelines.shard_build as stage
from pipelines.streams import build_streams
fast = stage.describe_shard
def slow(entry, tables, features):
    print("a shard is written", flush=True)
    time.sleep(60)
    return fast(entry, tables, features)
stage.describe_shard = slow
build_streams(*map(Path, sys.argv[1:]))
"""


def test_a_killed_run_leaves_nothing_that_a_reader_accepts_and_the_next_one_succeeds(build, events):
    folder = events.parent
    expected = content(build(events, "expected"))
    arguments = [str(folder / name) for name in ("expected.yaml", "events", "vocab", "streams")]
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW_STAGE, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "a shard is written\n"
        with pytest.raises(DataError, match=f"process {process.pid} is writing it"):
            build(events)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not (folder / "streams").exists()
    (half,) = folder.glob(".tmp-streams-*")
    with pytest.raises(DataError, match="is not a finished dataset"):
        open_dataset(half)
    assert content(build(events)) == expected
    assert not list(folder.glob(".tmp-streams-*"))


def test_the_command_runs_the_stage(build, events):
    folder = events.parent
    expected = bytes_of(build(events))
    shutil.rmtree(folder / "streams")
    command = [sys.executable, "-m", "pipelines.streams", "--params", folder / "streams.yaml", "--events", events]
    command += ["--vocab", folder / "vocab", "--out", folder / "streams"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert bytes_of(folder / "streams") == expected
    assert "600 rows in" in done.stderr
