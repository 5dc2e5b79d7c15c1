"""The stage `score`: a bundle, users' streams and requests in, a probability per candidate and task out."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import atomic_directory, write_json
from features.manifest import file_entry
from model.scorer import Scorer
from model.serving.bundle import open_bundle
from model.serving.score_config import ScoreConfig
from model.serving.score_job import MANIFEST, REFUSED, PartialJob, ShardAccount, identity_of, score_shard, write_refused
from model.serving.score_requests import RequestTable, read_requests
from model.serving.score_source import SourceShard, evaluation_shard, file_shard
from model.stage import run_stage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScorePaths:
    """Inputs and outputs of the stage; without `requests` it scores the evaluation window of `streams`."""

    params: Path
    bundle: Path
    streams: Path
    requests: Path | None
    out: Path

    @property
    def partial(self) -> Path:
        """Where a killed job leaves its shards: beside `out`, because DVC removes a stage's outputs first."""
        return self.out.parent / ".partial" / self.out.name


def score(paths: ScorePaths) -> None:
    """Runs the stage: scores shard by shard, goes on where the same job was killed, publishes all shards at once.

    Raises:
        DataError: bundle and streams do not belong together, or an input is missing or damaged.
    """
    config = ScoreConfig.load(paths.params)
    torch.set_num_threads(config.num_threads)
    scorer = Scorer(open_bundle(paths.bundle), config)
    dataset = open_dataset(paths.streams)
    scorer.bundle.check_dataset(dataset)
    requests = None if paths.requests is None else read_requests(paths.requests)
    source = _source(dataset, requests, scorer)
    job = PartialJob(paths.partial, _identity(paths, scorer, dataset))
    started = time.monotonic()
    # the lock on the output is held from here on, so that a second job stops before it scores
    with atomic_directory(paths.out) as directory:
        job.prepare()
        accounts, fresh = {}, 0
        for number, shard in enumerate(dataset.shards):
            name = shard.entry.name
            account = job.finished(name)
            if account:
                logger.info("score: %s is finished, %d requests", name, account.scored)
            else:
                account = score_shard(scorer, source(number), job)
                fresh += account.candidates
            accounts[name] = account
        refused = () if requests is None else requests.refused
        write_refused(directory / REFUSED, refused)
        job.collect(accounts, directory)
        summary = _summary(accounts, num_refused=len(refused), num_read=_num_read(dataset, requests))
        write_json(
            directory / MANIFEST,
            {
                "bundle": scorer.bundle.manifest.name,
                "content_checksum": dataset.manifest.content_checksum,
                "requests": None if paths.requests is None else file_entry(paths.requests).sha256,
                "tasks": list(scorer.tasks),
                "counts": dataclasses.asdict(summary),
                "shards": {name: account.model_dump(mode="json") for name, account in accounts.items()},
            },
        )
    job.clear()
    _log(paths.out, summary, fresh=fresh, seconds=time.monotonic() - started)


def _source(dataset: StreamsDataset, requests: RequestTable | None, scorer: Scorer) -> Callable[[int], SourceShard]:
    if requests is None:
        return lambda number: evaluation_shard(dataset.shards[number], dataset)
    return lambda number: file_shard(number, dataset, requests, encoder=scorer.encoder)


def _identity(paths: ScorePaths, scorer: Scorer, dataset: StreamsDataset) -> str:
    requests = "evaluation" if paths.requests is None else file_entry(paths.requests).sha256
    shards = [shard.entry.model_dump(mode="json") for shard in dataset.shards]
    return identity_of(
        scorer.bundle.manifest.name, shards, requests, scorer.config.model_dump(mode="json"), torch.__version__
    )


@dataclass(frozen=True)
class Summary:
    """Counts of a job: read = scored + refused."""

    read: int
    scored: int
    refused: int
    candidates: int
    unknown_users: int
    unknown_items: int


def _num_read(dataset: StreamsDataset, requests: RequestTable | None) -> int:
    if requests is not None:
        return requests.num_requests + len(requests.refused)
    return sum(int((shard.requests.column("split") == 1).sum()) for shard in dataset.shards)


def _summary(accounts: dict[str, ShardAccount], *, num_refused: int, num_read: int) -> Summary:
    """Adds the shards up.

    Raises:
        DataError: requests were lost or doubled on the way.
    """

    def total(name: str) -> int:
        return sum(getattr(account, name) for account in accounts.values())

    scored = total("scored")
    if scored + num_refused != num_read:
        raise DataError(f"{num_read} requests read, {scored} scored and {num_refused} refused; nothing was published")
    return Summary(
        read=num_read,
        scored=scored,
        refused=num_refused,
        candidates=total("candidates"),
        unknown_users=total("unknown_users"),
        unknown_items=total("unknown_items"),
    )


def _log(out: Path, summary: Summary, *, fresh: int, seconds: float) -> None:
    logger.info(
        "score: %s, %d requests read = %d scored + %d refused; %d candidates, %d of them now in %.1f s, %.0f a second; "
        "out of vocabulary: users of %d requests, %d candidates",
        out,
        summary.read,
        summary.scored,
        summary.refused,
        summary.candidates,
        fresh,
        seconds,
        fresh / max(seconds, 1e-9),
        summary.unknown_users,
        summary.unknown_items,
    )


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.score", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--bundle", type=Path, default=Path("models/bundle"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--requests", type=Path, default=None, help="Parquet file; the evaluation window without it")
    parser.add_argument("--out", type=Path, default=Path("data/scores"))
    paths = ScorePaths(**vars(parser.parse_args()))
    run_stage(lambda: score(paths))


if __name__ == "__main__":
    main()
