"""Whole nights in a small repository: git, DVC and Prefect are real, the model is one number."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows.models import ModelStore
from flows.nightly.dates import DAY
from flows.nightly.dry_run import describe_night
from flows.nightly.record import Records
from flows.nightly.workspace import git, resolve
from flows.nights_kills import plan
from flows.retrain import nightly, retrain, tonight
from flows.run import send_logs
from flows.server import prefect_api
from flows.settings import edit_params

from ..conftest import is_alive, wait_until
from .conftest import FIRST, ROOT, STAGES, Repository, dvc


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = tmp_path_factory.mktemp("prefect") / "home"
    with temporary_settings({PREFECT_HOME: home}, restore_defaults={PREFECT_API_URL}), prefect_api(ROOT):
        yield
        send_logs()


def run(repository: Repository, date: datetime.date, **options: object) -> str:
    """How a date's flow ended."""
    state = retrain(str(date), str(repository.root), return_state=True, **options)
    return f"{state.name}: {state.message}"


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": PREFECT_API_URL.value() or "", "PYTHONPATH": str(ROOT), **more}


@contextmanager
def command(repository: Repository, date: datetime.date, **more: str) -> Iterator[subprocess.Popen[str]]:
    """`hstu2 retrain --date` as a process."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from flows.cli import main; main()", "retrain", "--date", str(date)],
        cwd=repository.root,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_nights_that_promote_keep_fail_and_come_again(repository: Repository):
    root, store = repository.root, ModelStore(repository.places.models)
    before = git(root, "for-each-ref", "refs/heads"), git(root, "status", "--porcelain")
    repository.land(FIRST, "0.5")
    assert run(repository, FIRST).startswith("Promoted: 2024-02-28 promoted: first champion")
    first = store.champion()
    assert set(repository.record(FIRST).seconds) == {step for step, _ in plan(root)}, "every step has its kill"

    # Nothing has changed: nothing is run.
    assert run(repository, FIRST).startswith("Unchanged: 2024-02-28 was promoted")

    # A worse model does not get through, and its logs, model and lock are kept all the same. The remote is away.
    remote, aside = root.parent / "hstu2-remote", root.parent / "aside"
    remote.rename(aside)
    remote.write_text("in the way")
    repository.land(FIRST + DAY, "2.0")
    assert "not uploaded" in run(repository, FIRST + DAY)
    assert store.champion() == first
    assert not repository.record(FIRST + DAY).pushed
    remote.unlink()
    aside.rename(remote)

    # No logs: a reason, and a record; when they come the date is tonight's again.
    assert run(repository, FIRST + 2 * DAY).startswith("Failed: 2024-03-01 failed: wait for logs: ")
    repository.land(FIRST + 2 * DAY, "broken")
    assert "failed: ingest: a row is broken" in run(repository, FIRST + 2 * DAY)

    # A day that its own night refused stays out of the next window.
    repository.land(FIRST + 3 * DAY, "0.2")
    assert run(repository, FIRST + 3 * DAY).startswith("Promoted: ")
    data = repository.record(FIRST + 3 * DAY).data
    assert data is not None
    assert data.left_out == (FIRST + 2 * DAY,)
    assert [promotion.date for promotion in store.reign()] == [FIRST, FIRST + 3 * DAY]
    assert repository.record(FIRST + DAY).pushed, "the next upload brings what was left"

    # Killed between promotion and record: judged again as if it had not been crowned.
    before_kill = repository.record(FIRST + 3 * DAY)
    (repository.places.folder / "nights" / f"{FIRST + 3 * DAY}.json").unlink()
    assert run(repository, FIRST + 3 * DAY).startswith("Promoted: ")
    after_kill = repository.record(FIRST + 3 * DAY)
    assert (after_kill.gate, after_kill.tag, after_kill.model) == (before_kill.gate, before_kill.tag, before_kill.model)
    assert len(store.reign()) == 2

    # A repaired day is run again, on the record of its first attempt, and does not dethrone a later date.
    repository.land(FIRST + 2 * DAY, "0.1")
    assert "the champion is of a later date" in run(repository, FIRST + 2 * DAY)
    again = repository.record(FIRST + 2 * DAY)
    assert (again.outcome, again.attempt) == ("kept", 3)
    assert [text.split(":")[0] for text in again.earlier] == ["failed", "failed"]

    assert (git(root, "for-each-ref", "refs/heads"), git(root, "status", "--porcelain")) == before
    assert "2024-03-01" in repository.places.page.read_text()
    _restores_elsewhere(repository, "retrain/2024-02-29")


def _restores_elsewhere(repository: Repository, tag: str) -> None:
    clone = repository.root.parent / "clone"
    git(repository.root, "clone", "--quiet", str(repository.root), str(clone))
    git(clone, "checkout", "--quiet", tag)
    dvc(clone, "pull")
    assert (clone / "models" / "ranker" / "noise").read_text() == "2.0"
    output = dvc(clone, "repro")
    assert "Running stage" not in output
    assert output.count("didn't change, skipping") == 1 + len(STAGES)


def test_a_killed_night_leaves_no_orphan_and_the_next_one_takes_it_up(repository: Repository, tmp_path: Path):
    repository.land(FIRST, "0.5")
    pid = tmp_path / "pid"
    with command(repository, FIRST, HANG_IN="train", HANG_PID=str(pid)) as process:
        assert wait_until(lambda: pid.exists() and pid.read_text().endswith("\n"), 60)
        stage = int(pid.read_text())
        # A second one, meanwhile, is told who is at work.
        with command(repository, FIRST) as second:
            output, _ = second.communicate(timeout=60)
        assert second.returncode == 1
        assert f"held by process {process.pid}" in output
        process.kill()
        process.wait()
    assert wait_until(lambda: not is_alive(stage))
    assert ModelStore(repository.places.models).champion() is None
    assert run(repository, FIRST).startswith("Promoted: ")
    record = repository.record(FIRST)
    assert record.resumed == f"process {process.pid} was killed in step train of 2024-02-28"
    assert Records(repository.places.folder).running() is None


def test_a_night_goes_on_from_the_champion_and_says_so_when_it_cannot(repository: Repository):
    root, ranker = repository.root, repository.places.workspace / "models" / "ranker"

    def commit(**settings: object) -> None:
        edit_params(root / "params.yaml", {key.replace("__", "."): value for key, value in settings.items()})
        git(root, "commit", "--quiet", "--all", "-m", "Change settings")

    repository.land(FIRST, "0.5")
    assert run(repository, FIRST).startswith("Promoted: ")
    assert repository.record(FIRST).start == "fresh weights"
    first = repository.record(FIRST).model

    repository.land(FIRST + DAY, "0.4")
    assert run(repository, FIRST + DAY).startswith("Promoted: ")
    assert (
        repository.record(FIRST + DAY).start == f"../../models/store/{first}/ranker" == (ranker / "start").read_text()
    )

    # Another model: the champion's weights do not fit. From scratch, and the night says why.
    commit(model__dim=32)
    repository.land(FIRST + 2 * DAY, "0.3")
    said = run(repository, FIRST + 2 * DAY)
    assert "trained from scratch, train.warm_start: " in said
    assert "it has model.dim = 64, now it is 32" in said
    assert (repository.record(FIRST + 2 * DAY).outcome, (ranker / "start").read_text()) == ("promoted", "None")
    assert repository.record(FIRST + 2 * DAY).start == "fresh weights"

    commit(model__dim=64, retrain__warm_start="always")
    repository.land(FIRST + 3 * DAY, "0.2")
    assert run(repository, FIRST + 3 * DAY).startswith(f"Failed: {FIRST + 3 * DAY} failed: train: train.warm_start: ")
    commit(retrain__warm_start="never")
    assert run(repository, FIRST + 3 * DAY).startswith("Promoted: ")
    assert repository.record(FIRST + 3 * DAY).start == "fresh weights"


def test_the_scheduled_flow_runs_the_newest_missing_date_and_a_dry_run_says_why(repository: Repository):
    root, base = repository.root, resolve(repository.root, "HEAD")
    today = datetime.datetime.now(datetime.UTC).date()
    repository.land(today - DAY, "0.5")
    said = describe_night(repository.places, today - DAY, base, force=False)
    assert said[0] == f"{today - DAY} would run: it has not been run"
    assert sum("no night before it" in line for line in said) == len(STAGES)
    assert not repository.places.workspace.exists()
    assert tonight(repository.places, "HEAD").run == today - DAY
    assert nightly(str(root), return_state=True).name == "Promoted"
    assert nightly(str(root), return_state=True).name == "Nothing"
    assert "would not run" in describe_night(repository.places, today - DAY, base, force=False)[0]
    repository.land(today, "0.4")
    said = describe_night(repository.places, today, base, force=False)
    assert any(line.startswith("  stage train: ") for line in said)
    with get_client(sync_client=True) as client:
        keys = {artifact.key for artifact in client.read_artifacts()}
    assert {"retrain-metrics", "retrain-decision", "retrain-trends"} <= keys
