"""What happens to the streams stage: lost rows, replaced and missing inputs, kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.shard_build
import pipelines.streams
from features.dataset import open_dataset
from features.errors import DataError
from features.vocabulary import VocabularySet
from pipelines.events import Unit
from pipelines.shard_build import SpillUnit
from tests.pipelines.streams.event_files import bytes_of, content

ROOT = Path(__file__).parents[3]


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
