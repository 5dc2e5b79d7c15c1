"""`hstu2 inspect` on a log of two users written by hand and taken through the real stages."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from features.dataset import open_dataset
from features.errors import DataError
from flows.inspect import (
    action_names,
    describe_dataset,
    describe_request,
    describe_shard,
    describe_user,
    table,
    time_text,
)
from pipelines.ingest import ingest
from pipelines.streams import build_streams
from pipelines.vocab import build_vocabularies

ROOT = Path(__file__).parents[2]
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
START_MS = 1_650_600_000_000  # 2022-04-22 04:00 UTC


def row(user: int, item: int, seconds: int, *, click: int = 0, like: int = 0) -> str:
    time_ms = START_MS + seconds * 1000
    return f"{user},{item},20220422,1200,{time_ms},{click},{like},0,0,0,0,0,5000,10000,0,0,0,0,1"


@dataclass(frozen=True)
class Made:
    streams: Path
    vocab: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("inspect")
    rows = [
        row(7, 100, 0, click=1),
        row(7, 100, 60, like=1),
        row(7, 200, 120),
        row(7, 100, 120, click=1, like=1),
        row(8, 100, 86_400 * 5),
    ]
    (folder / "raw").mkdir()
    (folder / "raw" / "log_standard_4_22_to_5_08_pure.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["data"]["path"] = str(folder / "raw")
    params["features"] |= {"item_categories": [], "user_categories": []}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    ingest(folder / "params.yaml", folder / "events", folder / "quarantine")
    build_vocabularies(folder / "params.yaml", folder / "events", folder / "vocab")
    build_streams(folder / "params.yaml", folder / "events", folder / "vocab", folder / "streams")
    return Made(folder / "streams", folder / "vocab")


def cells(text: str, heading: str) -> list[list[str]]:
    """Rows of the table that follows the line that starts with the heading, split at runs of spaces."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith(heading))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("  "):
            break
        rows.append([cell.strip() for cell in line.strip().split("  ") if cell.strip()])
    return rows


def test_a_dataset_is_counted_and_checked(made: Made):
    text = describe_dataset(made.streams)
    assert "2 users, 5 events, 0 duplicates, 4 requests, 5 candidates" in text
    assert cells(text, "2 users")[1:] == [["consumption", "5", "2", "4"], ["interaction", "2", "1", "2"]]
    assert text.count("\nok ") == 8
    assert "BAD" not in text


def test_a_users_streams_are_newest_first_with_decoded_items_and_actions(made: Made):
    text = describe_user(made.streams, 7, vocab=made.vocab, limit=20)
    consumption = [line[2:4] for line in cells(text, "consumption: 4 events, newest first")]
    assert consumption == [
        ["100", "is_click is_like"],
        ["rare", "-"],
        ["100", "is_like"],
        ["100", "is_click"],
    ]
    assert len(cells(text, "interaction: 2 events")) == 2
    requests = cells(text, "requests: 3, newest first")
    assert [line[2:] for line in requests] == [
        ["training", "2", "2", "1"],
        ["training", "1", "3", "2"],
        ["training", "1", "4", "2"],
    ]


def test_a_shard_is_counted_and_its_files_are_compared(made: Made):
    shards = len(open_dataset(made.streams).shards)
    texts = [describe_shard(made.streams, number) for number in range(shards)]
    assert sum(int(text.split(" users")[0].split()[-1]) for text in texts) == 2
    for text in texts:
        files = cells(text, "")[1:]
        assert [(line[0], line[3]) for line in files] == [
            ("requests.arrow", "as the manifest says"),
            ("users.arrow", "as the manifest says"),
        ]
        assert text.count("\nok ") == 8
        assert "BAD" not in text


def test_a_damaged_shard_is_told_from_the_others(made: Made, tmp_path: Path):
    streams = Path(shutil.copytree(made.streams, tmp_path / "streams"))
    path = streams / "shard-00001-of-00004" / "users.arrow"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (streams / "shard-00002-of-00004" / "requests.arrow").unlink()
    digest = open_dataset(made.streams).manifest.shards[1].files["users.arrow"].sha256
    assert f"BAD, the manifest says {digest}" in describe_shard(streams, 1)
    assert cells(describe_shard(streams, 2), "")[1] == ["requests.arrow", "-", "-", "missing"]
    for number in (1, 2):
        assert describe_shard(streams, number).endswith(
            "this shard is not what was published; run the streams stage again"
        )


@pytest.mark.parametrize("number", [-1, 4])
def test_a_shard_that_is_not_there_is_said(made: Made, number: int):
    with pytest.raises(DataError, match=f"has shards 0 to 3, there is no {number}"):
        describe_shard(made.streams, number)


def test_the_limit_is_kept_and_said(made: Made):
    text = describe_user(made.streams, 7, vocab=made.vocab, limit=1)
    assert "consumption: 4 events, newest first (the first 1)" in text
    assert len(cells(text, "consumption: 4 events")) == 1


def test_without_its_vocabulary_items_are_rows(made: Made, tmp_path: Path):
    text = describe_user(made.streams, 7, vocab=tmp_path, limit=20)
    assert [line[2] for line in cells(text, "consumption: 4 events")] == ["row 2", "row 1", "row 2", "row 2"]


def test_a_request_shows_its_candidates_and_where_its_history_begins(made: Made):
    text = describe_request(made.streams, 7, 0, vocab=made.vocab, limit=20)
    candidates = cells(text, "candidates: 2")
    assert [line[0] for line in candidates] == ["100", "200"]
    assert [line[3] for line in candidates] == ["0.50", "0.50"]
    assert [line[0] for line in cells(text, "consumption: the history begins at index 2; newer")] == ["0", "1"]
    assert [line[0] for line in cells(text, "consumption: the history begins at index 2 with")] == ["2", "3"]


@pytest.mark.parametrize(("user", "number", "message"), [(9, 0, "no user 9"), (7, 3, "user 7 has 3 requests")])
def test_what_is_not_there_is_said(made: Made, user: int, number: int, message: str):
    with pytest.raises(DataError, match=message):
        describe_request(made.streams, user, number, vocab=made.vocab, limit=20)


def test_actions_are_named_by_bit():
    assert action_names(0b101, ("a", "b", "c")) == "a c"
    assert action_names(0, ("a",)) == "-"


def test_times_keep_their_milliseconds():
    assert time_text(START_MS + 7) == "2022-04-22 04:00:00.007"


def test_columns_are_as_wide_as_their_widest_cell():
    assert table(("a", "long"), [("wide cell", 1), ("b", 22)]) == [
        "  a          long",
        "  wide cell  1",
        "  b          22",
    ]
