from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import pipelines.shard_checks
from features.errors import DataError
from features.files import read_json, write_json
from features.manifest import file_entry
from features.schema import EVENTS, side_table_schema
from features.vocabulary import Vocabulary, VocabularySet, key_type
from pipelines.streams import build_streams
from pipelines.validate import Inputs, validate

ROOT = Path(__file__).parents[2]
DAY_MS = 86_400_000
NUM_ROWS = 400
USERS_FILE = "shard-00001-of-00003/users.arrow"


def write_events(directory: Path) -> None:
    """Ten days of events with pages and duplicates, the side tables and ingest's account."""
    rng = np.random.default_rng(3)
    columns = {
        "user_id": rng.integers(0, 12, NUM_ROWS),
        "item_id": rng.integers(0, 5, NUM_ROWS),
        "timestamp_ms": np.sort(rng.integers(0, 10 * DAY_MS // 5_000_000, NUM_ROWS) * 5_000_000),
        "action_mask": rng.choice([0, 1, 2, 128], NUM_ROWS),
        "watch_ms": rng.integers(0, 9000, NUM_ROWS),
        "duration_ms": rng.integers(1, 9000, NUM_ROWS),
        "value": None,
        "surface": rng.integers(0, 3, NUM_ROWS),
        "source_order": np.arange(NUM_ROWS),
    }
    repeats = rng.integers(0, NUM_ROWS, 20)
    arrays = []
    for field in EVENTS:
        values = columns[field.name]
        if values is None:
            arrays.append(pa.nulls(NUM_ROWS + 20, field.type))
        elif field.name == "source_order":
            arrays.append(pa.array(np.arange(NUM_ROWS + 20), field.type))
        else:
            arrays.append(pa.array(np.concatenate([values, values[repeats]]), field.type))
    table = pa.table(arrays, schema=EVENTS)
    days = table.column("timestamp_ms").to_numpy() // DAY_MS
    for day in range(10):
        folder = directory / f"date=1970-01-{day + 1:02d}"
        folder.mkdir(parents=True)
        pq.write_table(table.filter(pa.array(days == day)), folder / "part-000.parquet")
    pq.write_table(
        pa.table([[0, 1], ["a", "b"]], schema=side_table_schema("item_id", ("author",))), directory / "items.parquet"
    )
    pq.write_table(side_table_schema("user_id", ()).empty_table(), directory / "users.parquet")
    write_json(
        directory / "stats.json",
        {
            "read": table.num_rows + 3,
            "kept": table.num_rows,
            "outside": 0,
            "quarantined": 3,
            "reasons": {"is null": 2, "is too old": 1},
            "last_day": "1970-01-10",
            "days": {f"1970-01-{day + 1:02d}": int((days == day).sum()) for day in range(10)},
            "window": ["1970-01-01", "1970-01-10"],
            "files": [{"file": "log.csv", "read": table.num_rows + 3, "quarantined": 3}],
        },
    )


def write_vocabulary(directory: Path, num_users: int = 10) -> None:
    keys = {"user": range(num_users), "item": range(4), "surface": range(3), "author": ["a"]}
    directory.mkdir()
    VocabularySet(
        tuple(
            Vocabulary(field, pa.array(list(some), key_type(field)), np.ones(len(some), np.int64))
            for field, some in keys.items()
        )
    ).save(directory)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with params.yaml and the directories of all stages up to streams."""
    folder = tmp_path_factory.mktemp("sound")
    document = yaml.safe_load((ROOT / "params.yaml").read_text())
    document["data"] |= {"timezone": "UTC", "earliest": "1970-01-01", "eval_days": 3}
    document["pipelines"]["store"] = None
    document["features"] |= {"item_categories": ["author"], "user_categories": []}
    document["pipelines"] |= {"num_shards": 3, "num_workers": 1}
    (folder / "params.yaml").write_text(yaml.safe_dump(document))
    write_events(folder / "events")
    write_vocabulary(folder / "vocab")
    build_streams(folder / "params.yaml", folder / "events", folder / "vocab", folder / "streams")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def run(folder: Path) -> dict:
    out = folder / "validation.json"
    validate(folder / "params.yaml", Inputs(folder / "events", folder / "vocab", folder / "streams"), out)
    return read_json(out)


def edit_json(path: Path, edit: Callable[[dict], object]) -> None:
    document = read_json(path)
    edit(document)
    write_json(path, document)


def fails(folder: Path, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        run(folder)
    assert not (folder / "validation.json").exists()


def test_a_sound_dataset_is_described_check_by_check(sound):
    document = run(sound)
    checks = document["checks"]
    assert {"files", "accounts", "vocabulary", "candidates", "history", "split", "content", "codes"} <= set(checks)
    accounts = checks["accounts"]
    assert accounts["read"] == NUM_ROWS + 20 + 3
    assert accounts["duplicates"] >= 20
    assert accounts["read"] == accounts["events"] + accounts["quarantined"] + accounts["duplicates"]
    assert checks["candidates"]["candidates"] == accounts["events"]
    assert checks["split"]["max_train_ms"] < document["cut_ms"] == 7 * DAY_MS <= checks["split"]["min_eval_ms"]
    assert document["content_checksum"] == read_json(sound / "streams/manifest.json")["content_checksum"]
    assert checks["vocabulary"]["user"] == 12


def test_the_report_is_the_same_each_time(sound):
    run(sound)
    first = (sound / "validation.json").read_bytes()
    run(sound)
    assert (sound / "validation.json").read_bytes() == first


def test_settings_edited_since_are_noticed(folder):
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(text.replace("gap_ms: 1000", "gap_ms: 2000"))
    fails(folder, "check 'params': made with other settings in the sections data or features")


def test_another_vocabulary_is_noticed(folder):
    shutil.rmtree(folder / "vocab")
    write_vocabulary(folder / "vocab", num_users=9)
    fails(folder, "check 'vocabulary': made with another vocabulary")


def test_a_spec_with_other_sizes_is_noticed(folder):
    edit_json(folder / "streams/manifest.json", lambda manifest: manifest["spec"].update(intensity_size=5))
    fails(folder, "check 'vocabulary': spec has not the sizes")


@pytest.mark.parametrize(
    ("file", "edit", "problem"),
    [
        (
            "events/stats.json",
            lambda s: s.update(read=s["read"] + 1),
            r"ingest's read = kept \+ outside \+ quarantined",
        ),
        ("events/stats.json", lambda s: s["reasons"].pop("is null"), "ingest's quarantined = the sum over its reasons"),
        (
            "events/stats.json",
            lambda s: s.update(kept=s["kept"] + 1, read=s["read"] + 1),
            "ingest's kept = rows of the event files",
        ),
        ("streams/stats.json", lambda s: s.update(read=0), "rows of the event files = streams' read"),
        ("streams/stats.json", lambda s: s.update(duplicates=0), r"streams' read = events \+ duplicates"),
        (
            "streams/stats.json",
            lambda s: s.update(events=s["events"] - 1, duplicates=s["duplicates"] + 1),
            "streams' events = the sum over the shards",
        ),
    ],
)
def test_accounts_that_do_not_add_up_are_noticed(folder, file, edit, problem):
    edit_json(folder / file, edit)
    fails(folder, rf"check 'accounts': {problem} does not hold: \d+ and \d+")


def test_a_lost_event_file_is_noticed(folder):
    next(folder.glob("events/date=*/*.parquet")).unlink()
    fails(folder, "check 'accounts': ingest's kept = rows of the event files")


def test_events_with_corrected_rows_are_not_those_of_the_dataset(folder):
    """Counts and ids are those of before, so nothing else tells."""
    path = next(folder.glob("events/date=*/*.parquet"))
    rows = pq.read_table(path)
    watch_ms = pa.array([1] * len(rows), pa.int32())
    pq.write_table(rows.set_column(rows.schema.get_field_index("watch_ms"), EVENTS.field("watch_ms"), watch_ms), path)
    fails(folder, "check 'events': made of other events than those in .*; run the streams stage again")


def test_a_flipped_byte_is_noticed(folder):
    path = folder / "streams" / USERS_FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    fails(folder, f"{USERS_FILE}: sha256 differs")


def rewrite_users(folder: Path, edit: Callable[[pa.Table], pa.Table]) -> None:
    """Writes other rows and a manifest that agrees with the file."""
    path = folder / "streams" / USERS_FILE
    with pa.OSFile(str(path)) as source:
        table = edit(pa.ipc.open_file(source).read_all())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    edit_json(
        folder / "streams/manifest.json",
        lambda manifest: manifest["shards"][1]["files"].update({"users.arrow": file_entry(path).model_dump()}),
    )


def with_values(table: pa.Table, name: str, edit: Callable[[np.ndarray], None]) -> pa.Table:
    array = table.column(name).combine_chunks()
    values = array.values.to_numpy().copy()
    edit(values)
    lists = pa.LargeListArray.from_arrays(array.offsets, pa.array(values), type=array.type)
    return table.set_column(table.column_names.index(name), table.schema.field(name), lists)


def test_a_leaking_event_is_named_with_its_shard_and_user(folder):
    def newer(values: np.ndarray) -> None:
        values[0] += DAY_MS

    rewrite_users(folder, lambda table: with_values(table, "consumption.timestamp_ms", newer))
    fails(folder, r"shard-00001-of-00003: check 'candidates': user \d+: candidate.timestamp_ms")


def test_a_changed_value_that_no_rule_forbids_is_noticed(folder):
    def other(values: np.ndarray) -> None:
        values[0] = 1 if values[0] != 1 else 2

    rewrite_users(folder, lambda table: with_values(table, "consumption.intensity", other))
    fails(folder, r"manifest\.json: check 'content': content_checksum is not that of the rows")


def test_a_manifest_that_counts_otherwise_is_noticed(folder):
    edit_json(folder / "streams/manifest.json", lambda manifest: manifest["shards"][0].update(candidates=1))
    fails(folder, "shard-00000-of-00003: check 'content': the manifest counts other candidates")


@pytest.mark.parametrize("lost", [slice(0, 0), slice(0, -1), slice(0, 4)])
def test_a_runner_that_loses_or_doubles_results_is_noticed(folder, monkeypatch, lost):
    class Lossy(pipelines.shard_checks.WriteResults):
        def process(self, element: tuple[int, Iterable[str]]) -> None:
            results = list(element[1])
            super().process((element[0], (results * 2)[lost] if lost.stop == 4 else results[lost]))

    monkeypatch.setattr(pipelines.shard_checks, "WriteResults", Lossy)
    fails(folder, r"\d results for 3 shards; the runner lost or doubled some")


def test_the_command_tells_a_failure_in_one_line(folder):
    (folder / "streams/manifest.json").unlink()
    arguments = {name: folder / name for name in ("events", "vocab", "streams")}
    arguments |= {"params": folder / "params.yaml", "out": folder / "validation.json"}
    command = [sys.executable, "-m", "pipelines.validate"]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "manifest.json: missing, so" in last
    assert "Traceback" not in done.stderr


def test_the_report_is_json_that_names_every_check(sound):
    run(sound)
    document = json.loads((sound / "validation.json").read_text())
    assert all(isinstance(value, int) for figures in document["checks"].values() for value in figures.values())
