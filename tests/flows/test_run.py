"""The Prefect flow over real DVC stages, with a real embedded server."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, TaskRun

from features.errors import DataError
from flows.run import exclusive, run_stages, stages_until

from .conftest import api_environment, is_alive, started, wait_until

Commands = Callable[[dict[str, str]], Path]
HANG = "echo $$ > pid && sleep 300 && touch out/b"
RUN = "import sys; from pathlib import Path; from flows.run import run_stages; sys.exit(run_stages(Path('.'), None))"


def last_run() -> tuple[FlowRun, list[TaskRun]]:
    """The newest flow run and its task runs, oldest first, as the server lists them."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        run = client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    return run, sorted(tasks, key=lambda task: task.start_time)


@pytest.mark.usefixtures("prefect_home")
def test_the_server_lists_the_run_with_a_task_per_stage(make_workspace: Commands, capsys: pytest.CaptureFixture[str]):
    workspace = make_workspace({"a": "touch out/a", "b": "touch out/b"})
    assert run_stages(workspace, None) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "a ran, b ran"
    run, tasks = last_run()
    assert run.state.is_completed()
    assert [(task.name, task.state.name) for task in tasks] == [("a", "Ran"), ("b", "Ran")]

    assert run_stages(workspace, None) == 0
    assert [task.state.name for task in last_run()[1]] == ["Unchanged", "Unchanged"]


@pytest.mark.usefixtures("prefect_home")
def test_a_failed_stage_fails_the_run_in_its_own_words(make_workspace: Commands, capsys: pytest.CaptureFixture[str]):
    workspace = make_workspace(
        {"a": "touch out/a", "b": "echo error: b.csv is empty >&2 && exit 1", "c": "touch out/c"}
    )
    assert run_stages(workspace, None) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "hstu2: b failed: b.csv is empty"
    run, tasks = last_run()
    assert run.state.is_failed()
    assert run.state.message == "b failed: b.csv is empty"
    assert [task.name for task in tasks] == ["a", "b"]
    assert not (workspace / "out" / "c").exists()


@pytest.mark.usefixtures("prefect_home")
def test_until_leaves_the_later_stages_alone(make_workspace: Commands):
    workspace = make_workspace({"a": "touch out/a", "b": "touch out/b"})
    assert run_stages(workspace, "a") == 0
    assert not (workspace / "out" / "b").exists()


def test_an_unknown_stage_is_refused_with_the_known_ones(make_workspace: Commands):
    with pytest.raises(DataError, match="no such stage; the stages are a, b"):
        stages_until(make_workspace({"a": "true", "b": "true"}), "c")


def test_one_run_at_a_time_in_a_workspace(make_workspace: Commands):
    workspace = make_workspace({"a": "true"})
    with exclusive(workspace), pytest.raises(DataError, match=f"process {os.getpid()}"), exclusive(workspace):
        pass
    with exclusive(workspace):
        pass


def stage_pid(workspace: Path) -> int:
    """The process id of the stage that hangs, once it has written it."""
    path = workspace / "pid"
    assert wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


@pytest.mark.usefixtures("prefect_home")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_stopped_run_takes_its_stage_with_it(make_workspace: Commands, number: signal.Signals, status: int):
    workspace = make_workspace({"a": "touch out/a", "b": HANG})
    with started(RUN, workspace, api_environment()) as run:
        stage = stage_pid(workspace)
        assert is_alive(stage)
        run.send_signal(number)
        assert run.wait(timeout=60) == status
    assert not is_alive(stage)
    assert last_run()[0].state.is_crashed()


@pytest.mark.usefixtures("prefect_home")
def test_a_killed_run_takes_its_stage_with_it_and_the_next_one_succeeds(make_workspace: Commands):
    workspace = make_workspace({"a": "touch out/a", "b": f"if [ -e again ]; then touch out/b; else {HANG}; fi"})
    with started(RUN, workspace, api_environment()) as run:
        stage = stage_pid(workspace)
        run.kill()
        run.wait()
    assert wait_until(lambda: not is_alive(stage))
    assert not (workspace / "out" / "b").exists()
    (workspace / "again").touch()
    assert run_stages(workspace, None) == 0
    assert [task.state.name for task in last_run()[1]] == ["Unchanged", "Ran"]


def test_the_first_run_on_a_fresh_home_is_clean_and_phones_nobody(prefect_home: Path):
    log = (prefect_home / "server.log").read_text()
    assert "Traceback" not in log
    assert "locked" not in log
    with sqlite3.connect(f"file:{prefect_home / 'prefect.db'}?mode=ro", uri=True) as database:
        assert database.execute("select count(*) from alembic_version").fetchone() == (1,)
