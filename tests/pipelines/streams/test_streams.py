from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.dataset import open_dataset
from features.files import read_json
from features.schema import EVENTS
from features.shard import EVAL
from pipelines.events import plan_units, read_unit
from pipelines.shard_build import SpillUnit
from tests.pipelines.streams.event_files import DAY_MS, NUM_ROWS, bytes_of, content, make_events, write_events

ROOT = Path(__file__).parents[3]


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
