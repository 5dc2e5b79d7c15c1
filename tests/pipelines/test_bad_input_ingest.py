"""What a user sees when the input of the ingest stage is wrong: one clear line, and nothing written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.errors import DataError
from features.files import atomic_directory, read_json
from pipelines.ingest import ingest
from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs

FIRST_MS = 1_650_600_000_000
LOG = "log_standard_4_22_to_5_08_pure.csv"


@pytest.fixture
def refused(tmp_path: Path) -> Callable[[Path], str]:
    """Runs the stage, which must fail, and returns its message; nothing may be left."""

    def run(params: Path) -> str:
        out = tmp_path / "out"
        with pytest.raises(DataError) as error:
            ingest(params, out / "events", out / "quarantine")
        left = [path for path in out.rglob("*") if not path.name.endswith(".lock")]
        assert left == []
        return str(error.value)

    return run


@pytest.fixture
def accepted(tmp_path: Path) -> Callable[[Path], tuple[dict[str, Any], pl.DataFrame]]:
    """Runs the stage, which must succeed, and returns its account and the quarantine."""

    def run(params: Path) -> tuple[dict[str, Any], pl.DataFrame]:
        out = tmp_path / "out"
        ingest(params, out / "events", out / "quarantine")
        stats = read_json(out / "events" / "stats.json")
        bad = pl.read_parquet(out / "quarantine" / "rows.parquet")
        assert stats["read"] == stats["kept"] + stats["quarantined"]
        assert stats["quarantined"] == sum(stats["reasons"].values()) == len(bad)
        return stats, bad

    return run


Refused = Callable[[Path], str]
Accepted = Callable[[Path], tuple[dict[str, Any], pl.DataFrame]]
Make = Callable[..., Path]
Line = Callable[..., str]


def test_a_missing_path(tmp_path: Path, write_params: Make, refused: Refused) -> None:
    assert refused(write_params(tmp_path / "nowhere")) == f"{tmp_path}/nowhere: no such folder (data.path)"


def test_a_file_instead_of_a_folder(tmp_path: Path, write_log: Make, write_params: Make, refused: Refused) -> None:
    path = write_log([]) / LOG
    assert refused(write_params(path)) == f"{path}: data.path must be a folder, this is a file"


def test_an_empty_folder(tmp_path: Path, write_params: Make, refused: Refused) -> None:
    (tmp_path / "raw").mkdir()
    assert refused(write_params(tmp_path / "raw")) == (
        f"{tmp_path}/raw: no log_standard_*.csv or log_random_*.csv in it or in its folder 'data' (data.path)"
    )


def test_a_file_without_a_header(write_log: Make, write_params: Make, log_line: Line, refused: Refused) -> None:
    folder = write_log([log_line()])
    (folder / "log_random_4_22_to_5_08_pure.csv").write_text("")
    assert refused(write_params(folder)) == (
        "log_random_4_22_to_5_08_pure.csv: no header line, the file is empty or begins with a blank line"
    )


def test_only_headers(write_log: Make, write_params: Make, refused: Refused) -> None:
    folder = write_log([])
    assert refused(write_params(folder)) == f"{folder}: no row in 1 file(s), only headers"


def test_a_file_with_only_a_header_beside_others(
    write_log: Make, write_params: Make, log_line: Line, accepted: Accepted
) -> None:
    write_log([], "log_random_4_22_to_5_08_pure.csv")
    stats, _ = accepted(write_params(write_log([log_line()])))
    assert [(file["file"], file["read"]) for file in stats["files"]] == [
        ("log_random_4_22_to_5_08_pure.csv", 0),
        (LOG, 1),
    ]


def test_a_missing_column(write_log: Make, write_params: Make, refused: Refused) -> None:
    folder = write_log([], header="user_id,time_ms,is_click")
    assert refused(write_params(folder)) == (
        f"{LOG}: column 'video_id' is missing (a column of KuaiRand's log); found: user_id, time_ms, is_click"
    )


def test_a_missing_header_line(write_log: Make, write_params: Make, log_line: Line, refused: Refused) -> None:
    message = refused(write_params(write_log([log_line()], header=log_line())))
    assert message == f"{LOG}: column '0' is in the header twice; is the header line missing?"
    message = refused(write_params(write_log(["2,3"], header="1,2")))
    assert message.startswith(f"{LOG}: column 'user_id' is missing")
    assert message.endswith("found: 1, 2; is the header line missing?")


def test_a_column_retyped_in_a_later_file(
    write_log: Make, write_params: Make, log_line: Line, refused: Refused
) -> None:
    write_log([log_line()] * 3, "log_standard_4_08_to_4_21_pure.csv")
    folder = write_log([log_line(tab="home"), log_line(tab="search")])
    assert refused(write_params(folder)) == (
        f"{LOG}: 2 of 2 rows are bad (100.0 %, and data.max_quarantine_ratio allows 5 %); most often (2 rows)"
        f" column 'tab': not an integer; first in row 2: {log_line(tab='home')}"
    )


def test_seconds_instead_of_milliseconds(write_log: Make, write_params: Make, log_line: Line, refused: Refused) -> None:
    row = log_line(time_ms=FIRST_MS // 1000)
    assert refused(write_params(write_log([row] * 4))) == (
        f"{LOG}: 4 of 4 rows are bad (100.0 %, and data.max_quarantine_ratio allows 5 %); most often (4 rows)"
        " column 'time_ms': timestamp outside 2000-01-01..2100-01-01: looks like seconds, not milliseconds;"
        f" first in row 2: {row}"
    )


def test_no_event_left(write_log: Make, write_params: Make, log_line: Line, refused: Refused) -> None:
    folder = write_log([log_line(user_id=-1), log_line(user_id=-1), "1"])
    message = refused(write_params(folder, data={"max_quarantine_ratio": 1.0}))
    assert message == (f"{folder}: no event is left, every row was quarantined: 2 x negative id, 1 x too few fields")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_few_bad_rows(write_log: Make, write_params: Make, log_line: Line, accepted: Accepted, workers: int) -> None:
    bad_lines = [
        log_line(user_id=-1),
        log_line(video_id=2**60),
        log_line(video_id=10**30),
        log_line(user_id=""),
        log_line(time_ms=FIRST_MS // 1000),
        log_line(time_ms=FIRST_MS * 1000),
        log_line(time_ms="noon"),
        log_line(is_like=2),
        log_line()[:-10],
    ]
    folder = write_log([*[log_line()] * 100, *bad_lines, *[log_line()] * 100])
    stats, bad = accepted(write_params(folder, pipelines={"num_workers": workers}))
    outside = "timestamp outside 2000-01-01..2100-01-01: looks like"
    assert bad.rows() == [
        (LOG, 102 + number, column, reason, line)
        for number, (line, column, reason) in enumerate(
            zip(
                bad_lines,
                ["user_id", "video_id", "video_id", "user_id", "time_ms", "time_ms", "time_ms", "is_like", None],
                [
                    "negative id",
                    "id over 2^53",
                    "id over 2^53",
                    "null key",
                    f"{outside} seconds, not milliseconds",
                    f"{outside} microseconds, not milliseconds",
                    "not an integer",
                    "action flag is not 0 or 1",
                    "too few fields",
                ],
                strict=True,
            )
        )
    ]
    assert (stats["read"], stats["kept"], stats["quarantined"]) == (209, 200, 9)


def test_dirty_synthetic_logs(tmp_path: Path, write_params: Make, accepted: Accepted) -> None:
    made = write_kuairand_logs(tmp_path / "raw", SyntheticSettings(num_events=5000, dirty=True))
    categories = {"user_categories": ["onehot_feat2"], "item_categories": ["author", "upload_type", "tag", "tag_2"]}
    stats, _ = accepted(write_params(tmp_path / "raw", features=categories))
    assert made.broken > 0
    assert stats["quarantined"] == made.broken
    assert stats["read"] == 5000 + made.duplicates
    assert stats["reasons"]["too few fields"] == made.short_lines
    assert (
        stats["reasons"]["not an integer"] + stats["reasons"].get("action flag is not 0 or 1", 0) == made.bad_integers
    )
    assert stats["reasons"]["negative id"] == made.negative_ids
    assert stats["reasons"]["null key"] == made.null_fields


def test_unsorted_and_repeated_rows_are_kept_for_later(
    write_log: Make, write_params: Make, log_line: Line, accepted: Accepted
) -> None:
    lines = [log_line(time_ms=FIRST_MS + 5), log_line(), log_line(), log_line(time_ms=FIRST_MS + 3)]
    stats, bad = accepted(write_params(write_log(lines)))
    assert (stats["read"], stats["kept"], len(bad)) == (4, 4, 0)


def test_a_day_without_events(write_log: Make, write_params: Make, log_line: Line, accepted: Accepted) -> None:
    lines = [log_line(), log_line(time_ms=FIRST_MS + 2 * 86_400_000)]
    stats, _ = accepted(write_params(write_log(lines)))
    assert stats["days"] == {"2022-04-22": 1, "2022-04-24": 1}


def test_a_user_with_two_rows_of_features(
    write_log: Make, write_params: Make, log_line: Line, refused: Refused
) -> None:
    folder = write_log([log_line()])
    (folder / "user_features_pure.csv").write_text("user_id,register_days\n1,x\n2,y\n1,z\n")
    message = refused(write_params(folder, features={"user_categories": ["register_days"]}))
    assert message == "user_features_pure.csv: user_id 1 has two rows, keep one of them"


def test_a_side_table_of_bad_rows(write_log: Make, write_params: Make, log_line: Line, refused: Refused) -> None:
    folder = write_log([log_line()])
    (folder / "user_features_pure.csv").write_text("user_id,register_days\nann,x\n2,y\n")
    message = refused(write_params(folder, features={"user_categories": ["register_days"]}))
    assert message.startswith("user_features_pure.csv: 1 of 2 rows are bad (50.0 %")
    assert message.endswith("column 'user_id': not an integer; first in row 2: ann,x")


def test_a_typo_in_the_parameters(write_log: Make, write_params: Make, log_line: Line, refused: Refused) -> None:
    params = write_params(write_log([log_line()]), data={"max_quarantine_ration": 0.1})
    assert refused(params) == f"{params}: data.max_quarantine_ration: unknown key (a typo?)"


def test_a_second_writer(write_log: Make, write_params: Make, log_line: Line, tmp_path: Path) -> None:
    params = write_params(write_log([log_line()]))
    with atomic_directory(tmp_path / "events"), pytest.raises(DataError, match=r"events: process \d+ is writing it"):
        ingest(params, tmp_path / "events", tmp_path / "quarantine")


def test_the_command(write_log: Make, write_params: Make, log_line: Line, tmp_path: Path) -> None:
    params = write_params(write_log([log_line(tab="x")]))
    out = ["--events", str(tmp_path / "out/events"), "--quarantine", str(tmp_path / "out/quarantine")]
    command = [sys.executable, "-m", "pipelines.ingest", "--params", str(params), *out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith(f"error: {LOG}: 1 of 1 rows are bad (100.0 %")
