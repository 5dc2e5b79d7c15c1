"""What is told of a stage: its outcome, and its own last words when it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from features.errors import DataError
from flows.stage import MAX_ERROR_LINES, StageOutcome, Status, reproducing, stage_error, stage_names, summarize

from .conftest import is_alive

RUNNING = ["Running stage 'ingest':", "> python -m pipelines.ingest"]
FAILED = "ERROR: failed to reproduce 'ingest': failed to run: python -m pipelines.ingest, exited with 1"
TRACEBACK = ["Traceback (most recent call last):", '  File "a.py", line 1, in <module>', "    f()"]


def run_stage(
    stage: str, workspace: Path, on_line: Callable[[str], None], *, timeout: float | None = None
) -> StageOutcome:
    with reproducing((stage,), workspace, timeout_seconds=timeout) as reproduction:
        return reproduction.finish(stage, on_line)


@pytest.mark.parametrize(
    ("own", "error"),
    [
        (["12:00:01 10 of 20 files", "error: a.csv: column 'tab' is missing"], "a.csv: column 'tab' is missing"),
        (
            ["error: p.yaml: data.x: unknown key", "p.yaml: data.y: unknown key"],
            "p.yaml: data.x: unknown key\np.yaml: data.y: unknown key",
        ),
        ([*TRACEBACK, "ValueError: shapes (2,) and (3,)"], "ValueError: shapes (2,) and (3,)"),
        ([*TRACEBACK, "KeyError: 1", "", *TRACEBACK, "torch.OutOfMemoryError: no"], "torch.OutOfMemoryError: no"),
        (["12:00:01 step 5", "2026-01-01 12:00:00 INFO x", "Killed"], "Killed"),
    ],
)
def test_a_failed_stage_speaks_for_itself(own: list[str], error: str):
    outcome = summarize("ingest", [*RUNNING, *own, FAILED], 1)
    assert outcome.status is Status.FAILED
    assert outcome.error == error


def test_a_stage_that_dies_without_a_word_leaves_dvcs_reason():
    assert stage_error([*RUNNING, "12:00:01 step 5", FAILED]) == (
        "failed to run: python -m pipelines.ingest, exited with 1"
    )


def test_dvcs_own_refusal_is_told_without_its_preamble():
    lines = ["ERROR: failed to reproduce 'ingest': missing data 'source': data/raw"]
    assert stage_error(lines) == "missing data 'source': data/raw"
    assert stage_error(["ERROR: Unable to acquire lock."]) == "Unable to acquire lock."


def test_nothing_printed_at_all_still_gives_a_reason():
    assert summarize("ingest", [], 137).error == "ended with exit status 137"


def test_only_the_last_lines_are_told():
    error = stage_error([*RUNNING, *(f"line {number}" for number in range(50)), FAILED])
    assert error.splitlines() == [f"line {number}" for number in range(50 - MAX_ERROR_LINES, 50)]


def test_a_stage_runs_once_and_again_when_its_input_changes(make_workspace: Callable[[dict[str, str]], Path]):
    workspace = make_workspace({"a": "echo made by a && cat source >> runs && cat source > out/a"})
    lines: list[str] = []
    assert run_stage("a", workspace, lines.append).status is Status.RAN
    assert "made by a" in lines
    assert not [line for line in lines if "git add" in line or "dvc push" in line]
    assert run_stage("a", workspace, lines.append).status is Status.UNCHANGED
    (workspace / "source").write_text("2\n")
    assert run_stage("a", workspace, lines.append).status is Status.RAN
    (workspace / "source").write_text("1\n")
    assert run_stage("a", workspace, lines.append).status is Status.RESTORED
    assert (workspace / "runs").read_text() == "1\n2\n"


def test_stages_of_one_process_are_told_apart(make_workspace: Callable[[dict[str, str]], Path]):
    commands = {"a": "echo by a && touch out/a", "b": "echo by b && cp more out/b", "c": "exit 1"}
    workspace = make_workspace(commands)
    (workspace / "more").touch()
    said: dict[str, list[str]] = {"a": [], "b": [], "c": []}

    def statuses() -> list[Status]:
        with reproducing(("a", "b", "c"), workspace) as reproduction:
            return [reproduction.finish(stage, said[stage].append).status for stage in said]

    assert statuses() == [Status.RAN, Status.RAN, Status.FAILED]
    assert [["by a" in lines, "by b" in lines] for lines in said.values()] == [
        [True, False],
        [False, True],
        [False] * 2,
    ]
    assert statuses() == [Status.UNCHANGED, Status.UNCHANGED, Status.FAILED]


def test_what_dvc_refuses_before_it_begins_a_stage_is_that_stages(make_workspace: Callable[[dict[str, str]], Path]):
    workspace = make_workspace({"a": "touch out/a && rm -f extra", "b": "touch out/b"})
    text = (workspace / "dvc.yaml").read_text()
    (workspace / "dvc.yaml").write_text(text.replace("- out/a\n    outs", "- out/a\n    - extra\n    outs"))
    with reproducing(("a", "b"), workspace) as reproduction:
        assert reproduction.finish("a", lambda _: None).status is Status.RAN
        outcome = reproduction.finish("b", lambda _: None)
    assert (outcome.status, "extra" in outcome.error) == (Status.FAILED, True)


def test_a_missing_input_is_named(make_workspace: Callable[[dict[str, str]], Path]):
    workspace = make_workspace({"a": "touch out/a"})
    (workspace / "source").unlink()
    outcome = run_stage("a", workspace, lambda _: None)
    assert outcome.status is Status.FAILED
    assert "source" in outcome.error


def test_outside_of_the_repository_the_user_is_told_where_to_go(tmp_path: Path):
    with pytest.raises(DataError, match="root folder of the repository"):
        stage_names(tmp_path)


def test_a_stage_that_takes_too_long_is_ended_with_all_its_processes(make_workspace: Callable[[dict[str, str]], Path]):
    workspace = make_workspace({"a": "echo $$ > pid && sleep 300"})
    outcome = run_stage("a", workspace, lambda _: None, timeout=3)
    assert (outcome.status, outcome.error) == (Status.FAILED, "was ended after 3 s, its time limit")
    if (workspace / "pid").exists():
        assert not is_alive(int((workspace / "pid").read_text()))
