"""The stage score: every request once, the same bytes after a kill, counts that add up."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.dataset import open_dataset
from features.errors import DataError
from features.manifest import read_manifest, write_manifest
from model import score as score_stage
from model.score import ScorePaths, score
from model.scorer import Scorer
from model.serving.bundle import open_bundle
from model.serving.score_requests import read_requests
from model.serving.score_source import evaluation_shard, plan_batches

TASKS = ["is_click", "is_like", "long_view"]


@pytest.fixture
def paths(workspace, tmp_path) -> ScorePaths:
    return ScorePaths(workspace.params, workspace.bundle, workspace.streams, None, tmp_path / "scores")


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def scores_of(directory) -> pa.Table:
    shards = sorted(directory.glob("shard-*.parquet"))
    return pa.concat_tables([pq.read_table(shard) for shard in shards])


def raw_requests(workspace, *, split):
    """The dataset's requests as a caller's file."""
    content = workspace.content
    rows = [request for request in content.requests if request["split"] == split]
    surfaces = {0: None, 1: 99}
    return pa.table(
        {
            "request_id": pa.array([row["request_id"] for row in rows], pa.int64()),
            "user_id": pa.array([content.users[row["user_row"]]["user_id"] for row in rows], pa.int64()),
            "request_ms": pa.array([row["request_ms"] for row in rows], pa.int64()),
            "item_ids": pa.array([[event["item_id"] for event in row["candidates"]] for row in rows]),
            "surfaces": pa.array(
                [[surfaces.get(event["surface"], 10 + event["surface"]) for event in row["candidates"]] for row in rows]
            ),
        }
    )


def by_candidate(table):
    keys = [("request_id", "ascending"), ("position", "ascending")]
    return table.sort_by(keys)


def test_every_candidate_of_the_window_has_its_scores(workspace, paths):
    score(paths)
    requests = {row["request_id"]: row for row in workspace.content.requests if row["split"] == 1}
    table = scores_of(paths.out)
    assert table.num_rows == sum(len(row["candidates"]) for row in requests.values())
    for row in table.to_pylist():
        request = requests[row["request_id"]]
        event = request["candidates"][row["position"]]
        user = workspace.content.users[request["user_row"]]
        assert (row["item_id"], row["user_id"]) == (event["item_id"], user["user_id"])
        assert (row["item_unknown"], row["user_unknown"]) == (event["item"] == 1, user["user"] == 1)
        assert row["request_ms"] == request["request_ms"]
        assert all(0 < row[task] < 1 for task in TASKS)
    manifest = json.loads((paths.out / "manifest.json").read_text())
    counts = manifest["counts"]
    assert counts["read"] == counts["scored"] + counts["refused"] == len(requests)
    assert counts["candidates"] == table.num_rows
    assert counts["unknown_items"] == sum(table.column("item_unknown").to_pylist())
    assert manifest["bundle"] == open_bundle(paths.bundle).manifest.name
    assert not paths.partial.parent.exists()


def test_a_file_of_the_same_requests_gives_the_same_scores(workspace, paths, tmp_path):
    score(paths)
    pq.write_table(raw_requests(workspace, split=1), tmp_path / "requests.parquet")
    score(dataclasses.replace(paths, requests=tmp_path / "requests.parquet", out=tmp_path / "again"))
    expected, found = by_candidate(scores_of(paths.out)), by_candidate(scores_of(tmp_path / "again"))
    for name in expected.column_names:
        if name in TASKS:
            np.testing.assert_allclose(found.column(name).to_numpy(), expected.column(name).to_numpy(), atol=1e-5)
        else:
            assert found.column(name).equals(expected.column(name)), name


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_killed_job_goes_on_and_ends_in_the_same_bytes(paths, tmp_path, monkeypatch, finished):
    score(dataclasses.replace(paths, out=tmp_path / "whole"))
    plain, scored = score_stage.score_shard, []

    def killed(scorer, source, job):
        if len(scored) == finished:
            raise KeyboardInterrupt
        scored.append(source.name)
        return plain(scorer, source, job)

    monkeypatch.setattr(score_stage, "score_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        score(paths)
    assert not paths.out.exists()
    assert len(list(paths.partial.glob("*.parquet"))) == finished

    def counted(scorer, source, job):
        scored.append(source.name)
        return plain(scorer, source, job)

    monkeypatch.setattr(score_stage, "score_shard", counted)
    score(paths)
    assert len(scored) == 3
    assert contents(paths.out) == contents(tmp_path / "whole")


def test_a_damaged_shard_and_another_jobs_shards_are_made_again(workspace, paths, tmp_path, monkeypatch):
    score(dataclasses.replace(paths, out=tmp_path / "whole"))
    monkeypatch.setattr(score_stage, "write_refused", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        score(paths)
    monkeypatch.undo()
    shard = sorted(paths.partial.glob("*.parquet"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    score(paths)
    assert contents(paths.out) == contents(tmp_path / "whole")

    paths.partial.mkdir(parents=True)
    (paths.partial / "identity.json").write_text('{"identity": "another"}')
    (paths.partial / "shard-00000-of-00003.parquet").write_bytes(b"other")
    score(paths)
    assert contents(paths.out) == contents(tmp_path / "whole")


def test_what_cannot_be_scored_is_set_aside_with_the_reason(workspace, paths, tmp_path):
    table = pa.table(
        {
            "request_id": pa.array([1, 2, 2, 3, 4, 5, None, 7, 8], pa.int64()),
            "user_id": pa.array([1000, 1001, 1001, None, 1003, 5, 6, 1004, 1005], pa.int64()),
            "request_ms": pa.array([10**6, 10**6, 10**6, 10**6, 0, 10**6, 10**6, 10**6, 10**6], pa.int64()),
            "item_ids": [[502, 503], [504], [505], [506], [507], [], [508], [None, 509], [510, 511]],
            "surfaces": [[12, None], None, [12], [12], [12], [], [12], [12, 12], [12]],
        }
    )
    pq.write_table(table, tmp_path / "requests.parquet")
    score(dataclasses.replace(paths, requests=tmp_path / "requests.parquet"))
    refused = pq.read_table(paths.out / "refused.parquet").to_pylist()
    assert [(row["row"], row["request_id"], row["reason"]) for row in refused] == [
        (2, 2, "request_id is there twice, the first one counts"),
        (3, 3, "user_id is null"),
        (4, 4, "request_ms is not positive"),
        (5, 5, "no candidates"),
        (6, None, "request_id is null"),
        (7, 7, "an item id is null"),
        (8, 8, "surfaces and item_ids differ in length"),
    ]
    counts = json.loads((paths.out / "manifest.json").read_text())["counts"]
    assert (counts["read"], counts["scored"], counts["refused"], counts["candidates"]) == (9, 2, 7, 3)
    assert sorted(set(scores_of(paths.out).column("request_id").to_pylist())) == [1, 2]


def test_users_without_streams_are_scored_beside_those_with(workspace, paths, tmp_path):
    known = [user["user_id"] for user in workspace.content.users[:2]]
    users = [-5, 0, *known, 10**15]
    table = pa.table(
        {
            "request_id": range(5),
            "user_id": users,
            "request_ms": [2 * 10**6] * 5,
            "item_ids": [[502, 503]] * 5,
        }
    )
    pq.write_table(table, tmp_path / "requests.parquet")
    score(dataclasses.replace(paths, requests=tmp_path / "requests.parquet"))
    rows = by_candidate(scores_of(paths.out)).to_pylist()
    assert [row["user_unknown"] for row in rows[::2]] == [True, True, False, False, True]
    strangers = [[row[task] for task in TASKS] for row in rows if row["user_unknown"] and row["item_id"] == 502]
    np.testing.assert_allclose(strangers, strangers[:1] * 3, atol=1e-6)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"request_id": [1]}), "column 'user_id' is missing"),
        (
            pa.table({"request_id": ["a"], "user_id": [1], "request_ms": [1], "item_ids": [[1]]}),
            "column 'request_id' has type string",
        ),
        (
            pa.table({"request_id": [1], "user_id": [1], "request_ms": [1], "item_ids": [1]}),
            "column 'item_ids' has type int64",
        ),
    ],
)
def test_a_file_of_another_form_is_refused_by_its_column(tmp_path, table, message):
    pq.write_table(table, tmp_path / "requests.parquet")
    with pytest.raises(DataError, match=message):
        read_requests(tmp_path / "requests.parquet")


def test_a_file_that_is_none_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_requests(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_requests(tmp_path / "text.parquet")


def test_streams_of_another_vocabulary_are_refused_before_anything_is_scored(workspace, paths):
    manifest = read_manifest(workspace.streams)
    write_manifest(workspace.streams, manifest.model_copy(update={"vocabulary_hash": "e" * 64}))
    try:
        with pytest.raises(DataError, match="vocabulary eeeeeeeeeeee, bundle"):
            score(paths)
    finally:
        write_manifest(workspace.streams, manifest)
    assert not paths.partial.exists()


@pytest.mark.parametrize("budget", [1, 25, 10**6])
def test_batches_fit_the_budget_and_hold_every_request_once(workspace, budget):
    dataset = open_dataset(workspace.streams)
    for shard in dataset.shards:
        source = evaluation_shard(shard, dataset)
        batches = list(plan_batches(source, max_lengths=(16, 8), tokens_per_batch=budget))
        assert np.concatenate([source.rows[:0], *batches]).tolist() == source.rows.tolist()
        for rows in batches:
            tokens = 0
            for row in rows:
                user = source.columns.user_row[row]
                for stream, starts, bound in zip(source.columns.streams, source.columns.starts, (16, 8), strict=True):
                    length = stream.offsets[user + 1] - stream.offsets[user] - starts[row]
                    tokens += min(int(length), bound)
                tokens += int(source.columns.candidates.offsets[row + 1] - source.columns.candidates.offsets[row])
            assert len(rows) == 1 or tokens <= budget


def test_the_budget_changes_no_score(workspace, paths, tmp_path):
    scorer = Scorer.load(workspace.bundle)
    score(paths)
    params = tmp_path / "params.yaml"
    params.write_text(workspace.params.read_text().replace("tokens_per_batch: 60", "tokens_per_batch: 5000"))
    score(dataclasses.replace(paths, params=params, out=tmp_path / "again"))
    expected, found = scores_of(paths.out), scores_of(tmp_path / "again")
    for task in scorer.tasks:
        np.testing.assert_allclose(found.column(task).to_numpy(), expected.column(task).to_numpy(), atol=1e-5)
