"""A short kill loop; `make kill-loop` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench.kill_loop import Undisturbed, Workspace, kill_loop, look, make_workspace, run_undisturbed
from pipelines.ingest import ingest
from pipelines.sources.synthetic import SyntheticSettings

ROOT = Path(__file__).parents[2]
SETTINGS = SyntheticSettings(num_events=3_000, num_users=40, num_items=400, num_topics=4, dirty=True)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("kills")
    return make_workspace(folder, SETTINGS, template=ROOT / "params.yaml", num_shards=2)


@pytest.fixture(scope="module")
def undisturbed(workspace: Workspace) -> Undisturbed:
    return run_undisturbed(workspace)


@pytest.mark.slow
def test_killed_runs_leave_nothing_mixed_and_the_next_ones_succeed(
    workspace: Workspace, undisturbed: Undisturbed
) -> None:
    kills = kill_loop(workspace, undisturbed, 2, seed=3, stages=("streams", "ingest"))
    assert [(kill.stage, kill.building) for kill in kills] == [("streams", "second"), ("ingest", "first")]


def test_a_mixture_that_validates_is_noticed(
    workspace: Workspace, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.run("second", begin=lambda stage: None)
    assert look(workspace, undisturbed) == ("second", "passed")
    ingest(workspace.params("first"), workspace.inputs.events, workspace.root / "quarantine")
    assert look(workspace, undisturbed) == ("second", "refused")
    monkeypatch.setattr("pipelines.bench.kill_loop._validates", lambda workspace: True)
    with pytest.raises(RuntimeError, match="validate passed a mixture"):
        look(workspace, undisturbed)
