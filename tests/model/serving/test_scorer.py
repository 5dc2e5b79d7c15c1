"""Scorer.load(path).score(request): the job's scores, and an answer or a clear error for every request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from features.dataset import open_dataset
from features.errors import DataError
from features.spec import CategoricalField
from model.evaluation import score_candidates
from model.ranker import Ranker
from model.reader import Reader
from model.scorer import Scorer, ScoreRequest
from model.serving.bundle import open_bundle
from model.serving.score_config import ScoreConfig
from model.serving.score_encode import CandidateEncoder, RawCandidates
from model.serving.scorer_batch import UserStreams
from model.serving.scorer_example import run
from model.stage import max_lengths
from model.training.checkpoint import load_checkpoint


@pytest.fixture(scope="session")
def scorer(workspace) -> Scorer:
    return Scorer.load(workspace.bundle)


@pytest.fixture(scope="session")
def users(workspace, scorer) -> UserStreams:
    return UserStreams.open(workspace.streams, scorer.bundle)


@pytest.fixture(scope="session")
def user_id(workspace) -> int:
    """A user with a vocabulary row and the longest history."""
    return max(workspace.content.users[:28], key=lambda user: len(user["consumption"]))["user_id"]


def request_from(content, request, users) -> ScoreRequest:
    """A request of the dataset as a caller would send it."""
    user_id = content.users[request["user_row"]]["user_id"]
    surfaces = {0: None, 1: 99}
    return ScoreRequest(
        user_id=user_id,
        request_ms=request["request_ms"],
        item_ids=[event["item_id"] for event in request["candidates"]],
        history=users.history(user_id),
        surfaces=[surfaces.get(event["surface"], 10 + event["surface"]) for event in request["candidates"]],
        request_id=request["request_id"],
    )


def test_scores_are_those_of_the_trained_ranker(workspace, scorer, users):
    checkpoint = load_checkpoint(workspace.root / "ranker")
    ranker = Ranker(checkpoint.header.model, checkpoint.header.spec)
    ranker.load_state(dict(checkpoint.tensors["dense"]), dict(checkpoint.tensors["tables"]))
    dataset = open_dataset(workspace.streams)
    lengths = max_lengths(ranker.config, ranker.spec)
    reader = Reader(dataset, split=1, batch_size=1000, max_lengths=lengths)
    expected = torch.sigmoid(score_candidates(ranker, reader, torch.device("cpu")).logits_CK)
    requests = [request for request in workspace.content.requests if request["split"] == 1]
    requests.sort(key=lambda request: request["request_id"])
    assert len(requests) > 20
    found = [scorer.score(request_from(workspace.content, request, users)) for request in requests]
    np.testing.assert_allclose(
        np.concatenate([scores.probability_CK for scores in found]), expected.numpy(), atol=1e-5, rtol=0
    )
    assert any(scores.item_unknown_C.any() for scores in found)
    assert any(scores.user_unknown for scores in found)
    assert not all(scores.user_unknown for scores in found)


def test_many_threads_share_a_scorer(workspace, scorer, users):
    requests = [request_from(workspace.content, request, users) for request in workspace.content.requests] * 3
    alone = [scorer.score(request).probability_CK for request in requests]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda request: scorer.score(request).probability_CK, requests))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_unknown_user_an_empty_history_and_unknown_items_get_scores(scorer, users, user_id):
    nobody = users.history(77_777)
    assert nobody is None
    request = ScoreRequest(user_id=77_777, request_ms=10**6, item_ids=[502, 123_456_789, 9_999], history=nobody)
    scores = scorer.score(request)
    assert scores.user_unknown
    assert scores.item_unknown_C.tolist() == [False, True, True]
    assert scores.item_id_C.tolist() == [502, 123_456_789, 9_999]
    assert scores.probability_CK.shape == (3, 3)
    assert ((scores.probability_CK > 0) & (scores.probability_CK < 1)).all()
    known = scorer.score(replace(request, user_id=user_id, history=users.history(user_id), request_ms=1))
    assert not known.user_unknown
    assert known.probability_CK.shape == (3, 3)


def test_no_candidates_give_no_rows(scorer, users, user_id):
    scores = scorer.score(ScoreRequest(user_id=user_id, request_ms=10**6, item_ids=[], history=users.history(user_id)))
    assert scores.probability_CK.shape == (0, 3)
    assert scores.item_unknown_C.shape == (0,)


def test_ten_thousand_candidates_get_the_scores_of_each_alone(scorer, users, user_id):
    item_ids = [500 + number % 60 for number in range(10_000)]
    request = ScoreRequest(user_id=user_id, request_ms=2 * 10**6, item_ids=item_ids, history=users.history(user_id))
    scores = scorer.score(request)
    assert scores.probability_CK.shape == (10_000, 3)
    for place in (0, 777, 9_999):
        alone = scorer.score(replace(request, item_ids=[item_ids[place]]))
        np.testing.assert_allclose(scores.probability_CK[place], alone.probability_CK[0], atol=1e-5, rtol=0)


def test_events_at_or_after_the_request_are_no_history(scorer, users, user_id):
    history = users.history(user_id)
    newest = int(history.streams["consumption"].timestamp_ms[0])
    at, after = (
        scorer.score(ScoreRequest(user_id=user_id, request_ms=moment, item_ids=[510], history=history)).probability_CK
        for moment in (newest, newest + 1)
    )
    assert np.abs(at - after).max() > 1e-6
    events = history.streams["consumption"]
    assert events.before(newest, 5).start == int((events.timestamp_ms >= newest).sum())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"request_ms": 0}, "request 5: request_ms is 0, expected UTC milliseconds"),
        ({"item_ids": ["a"]}, "request 5: item_ids must be whole numbers"),
        ({"item_ids": [1.5]}, "request 5: item_ids must be whole numbers"),
        ({"item_ids": [2**70]}, "request 5: item_ids must be whole numbers"),
        ({"item_ids": [None]}, "request 5: item_ids must be whole numbers"),
        ({"item_ids": [[1], [2]]}, "request 5: item_ids must be one list"),
        ({"surfaces": [1, 2]}, "request 5: 2 surfaces for 1 item_ids"),
        ({"durations_ms": []}, "request 5: 0 durations_ms for 1 item_ids"),
    ],
)
def test_requests_that_make_no_sense_are_refused_by_their_id(scorer, changes, message):
    request = ScoreRequest(user_id=1, request_ms=10**6, item_ids=[502], request_id=5)
    with pytest.raises(DataError, match=message):
        scorer.score(replace(request, **changes))


def test_a_history_without_a_stream_is_refused(scorer, users, user_id):
    history = users.history(user_id)
    lacking = replace(history, streams={"consumption": history.streams["consumption"]})
    with pytest.raises(DataError, match="the history has no stream 'interaction'"):
        scorer.score(ScoreRequest(user_id=user_id, request_ms=10**6, item_ids=[502], history=lacking))


def test_triton_on_a_cpu_is_refused_by_its_key(workspace):
    config = ScoreConfig.load(workspace.params).model_copy(update={"impl": "triton"})
    with pytest.raises(DataError, match=r"score\.impl: 'triton' needs the device cuda"):
        Scorer(open_bundle(workspace.bundle), config)


def test_the_example_runs(workspace, capsys):
    run(workspace.bundle, workspace.streams)
    shown = capsys.readouterr().out
    longest = max(len(user["consumption"]) for user in workspace.content.users)
    assert f"{longest} events of history" in shown
    assert shown.count("item -1:") == 2
    assert "user -1, not in the vocabulary, 0 events of history" in shown


def test_contexts_are_encoded_as_the_streams_stage_does(scorer, monkeypatch):
    """2022-05-05 18:30 UTC is Friday, half past two in the morning, in Shanghai."""
    spec = scorer.bundle.contents.spec
    names = ("weekday", "hour", "duration", "surface")
    contexts = tuple(CategoricalField(name=name, size=64) for name in names)
    contents = scorer.bundle.contents.model_copy(
        update={"spec": spec.model_copy(update={"candidate_contexts": contexts})}
    )
    encoder = CandidateEncoder(scorer.bundle)
    monkeypatch.setattr(encoder, "_contents", contents)
    moment_C = np.full(3, 1_651_775_400_000)
    raw = RawCandidates(np.array([502, 503, 1]), moment_C, np.array([12, 77, np.nan]), np.array([7000, 0, np.nan]))
    weekday_C, hour_C, duration_C, surface_C = encoder.encode(raw).contexts
    assert (weekday_C.tolist(), hour_C.tolist()) == ([5] * 3, [3] * 3)
    assert duration_C.tolist() == [13, 1, 0]
    assert surface_C.tolist() == [2, 1, 0]
    items = encoder.encode(raw).items
    assert [codes.tolist() for codes in items] == [[2, 3, 1], [3, 4, 0]]
