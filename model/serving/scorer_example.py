"""A complete use of the scorer, on what a run has left: `python -m model.serving.scorer_example`.

Scores five items, one of them unknown, for the user with the most events and for one whom nobody knows.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from model.scorer import RequestScores, Scorer, ScoreRequest
from model.serving.scorer_batch import UserStreams
from model.stage import run_stage

_UNKNOWN_ID = -1
_DAY_MS = 86_400_000


def run(bundle: Path, streams: Path) -> None:
    """Loads, asks and prints."""
    scorer = Scorer.load(bundle)
    users = UserStreams.open(streams, scorer.bundle)
    user_id, history = users.busiest()
    item_ids = [*scorer.encoder.vocabularies.field("item").keys[:4].to_pylist(), _UNKNOWN_ID]
    newest_ms = max(int(events.timestamp_ms[0]) for events in history.streams.values() if events.timestamp_ms.size)
    request = ScoreRequest(user_id=user_id, request_ms=newest_ms + _DAY_MS, item_ids=item_ids, history=history)
    show(scorer.score(request), num_events=history.streams["consumption"].timestamp_ms.size)
    stranger = ScoreRequest(user_id=_UNKNOWN_ID, request_ms=newest_ms + _DAY_MS, item_ids=item_ids)
    show(scorer.score(stranger), num_events=0)


def show(scores: RequestScores, *, num_events: int) -> None:
    """One line per candidate, best first for the first task."""
    known = "not in the vocabulary" if scores.user_unknown else "in the vocabulary"
    print(f"user {scores.user_id}, {known}, {num_events} events of history")
    for place in (-scores.probability_CK[:, 0]).argsort():
        figures = ", ".join(
            f"{task} {value:.4f}" for task, value in zip(scores.tasks, scores.probability_CK[place], strict=True)
        )
        note = "  (not in the vocabulary)" if scores.item_unknown_C[place] else ""
        print(f"  item {scores.item_id_C[place]}: {figures}{note}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.serving.scorer_example", description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("models/bundle"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    args = parser.parse_args()
    run_stage(lambda: run(args.bundle, args.streams))


if __name__ == "__main__":
    main()
