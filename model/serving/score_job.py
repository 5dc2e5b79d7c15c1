"""A scoring job shard by shard: what is finished waits beside the output, so that a killed job goes on from there."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from features.config import Closed
from features.errors import DataError
from features.files import atomic_file, read_json, write_json
from features.manifest import FileEntry, file_entry
from features.vocabulary import UNKNOWN
from model.progress import Progress
from model.scorer import Scorer, probabilities
from model.serving.score_requests import Refusal
from model.serving.score_source import SourceShard, gather, plan_batches
from model.stage import max_lengths

logger = logging.getLogger(__name__)
MANIFEST, REFUSED = "manifest.json", "refused.parquet"
_IDENTITY = "identity.json"


class ShardAccount(Closed):
    """One finished shard."""

    scored: int
    candidates: int
    unknown_users: int
    unknown_items: int
    file: FileEntry


@dataclass(frozen=True)
class PartialJob:
    """The finished shards of one unfinished job; those of another bundle, input or setting are removed, not used.

    Attributes:
        directory: holds them.
        identity: of everything that decides the output's bytes.
    """

    directory: Path
    identity: str

    def prepare(self) -> None:
        """Keeps what belongs to this job and removes anything else."""
        path = self.directory / _IDENTITY
        if path.exists() and read_json(path) != {"identity": self.identity}:
            logger.info("score: %s belongs to a job with other input or settings, removed", self.directory)
            shutil.rmtree(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        write_json(path, {"identity": self.identity})

    def finished(self, name: str) -> ShardAccount | None:
        """The account of a shard that is there and whole."""
        account_path, path = self.account_path(name), self.path(name)
        if not account_path.exists() or not path.exists():
            return None
        try:
            account = ShardAccount.model_validate(read_json(account_path))
        except (DataError, ValidationError):
            return None
        return account if file_entry(path) == account.file else None

    def path(self, name: str) -> Path:
        """Where a shard's scores lie."""
        return self.directory / f"{name}.parquet"

    def account_path(self, name: str) -> Path:
        """Where its account lies; written after the scores."""
        return self.directory / f"{name}.json"

    def collect(self, names: Iterable[str], target: Path) -> None:
        """Gives all shards a second name in the output."""
        for name in names:
            os.link(self.path(name), target / f"{name}.parquet")

    def clear(self) -> None:
        """Removes the shards' first names: the job is complete."""
        shutil.rmtree(self.directory)
        with suppress(OSError):  # another job's shards lie there too
            self.directory.parent.rmdir()


def identity_of(*parts: object) -> str:
    """Hex digest of what decides the output."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def scores_schema(tasks: tuple[str, ...], *, has_watch_ratio: bool) -> pa.Schema:
    """One row per candidate: raw ids, its place in the request, flags, a probability per task."""
    fields = [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("user_id", pa.int64(), nullable=False),
        pa.field("request_ms", pa.int64(), nullable=False),
        pa.field("position", pa.int32(), nullable=False),
        pa.field("item_id", pa.int64(), nullable=False),
        pa.field("user_unknown", pa.bool_(), nullable=False),
        pa.field("item_unknown", pa.bool_(), nullable=False),
    ]
    fields += [pa.field(task, pa.float32(), nullable=False) for task in tasks]
    if has_watch_ratio:
        fields.append(pa.field("watch_ratio", pa.float32(), nullable=False))
    return pa.schema(fields)


def score_shard(scorer: Scorer, source: SourceShard, job: PartialJob) -> ShardAccount:
    """Scores one shard and keeps it in the job."""
    contents, config = scorer.bundle.contents, scorer.config
    lengths = max_lengths(contents.model, contents.spec)
    plan = list(plan_batches(source, max_lengths=lengths, tokens_per_batch=config.tokens_per_batch))
    schema = scores_schema(scorer.tasks, has_watch_ratio=contents.model.heads.watch_ratio_weight > 0)
    schema = schema.with_metadata({"bundle": scorer.bundle.manifest.name})
    progress = Progress(logger, f"score: {source.name}, batch", total=len(plan))
    tables = [schema.empty_table()]
    for number, rows in enumerate(plan, start=1):
        tables.append(_score_batch(scorer, source, rows, lengths=lengths, schema=schema))
        progress.advance(requests=rows.size, candidates=tables[-1].num_rows)
        if number % 50 == 0 or number == len(plan):
            progress.log()
    table = pa.concat_tables(tables).combine_chunks()
    with atomic_file(job.path(source.name)) as temporary:
        pq.write_table(table, temporary, compression="zstd")
    account = ShardAccount(
        scored=source.rows.size,
        candidates=table.num_rows,
        unknown_users=_unknown_users(source),
        unknown_items=int(np.count_nonzero(table.column("item_unknown").to_numpy())),
        file=file_entry(job.path(source.name)),
    )
    write_json(job.account_path(source.name), account.model_dump(mode="json"))
    return account


def _score_batch(
    scorer: Scorer, source: SourceShard, rows: np.ndarray, *, lengths: tuple[int, ...], schema: pa.Schema
) -> pa.Table:
    batch = gather(source, rows, lengths)
    predictions = scorer.predict(batch)
    candidates = source.columns.candidates
    count_B = candidates.offsets[rows + 1] - candidates.offsets[rows]
    position_C = np.concatenate([np.arange(count) for count in count_B])
    chosen_C = np.repeat(candidates.offsets[rows], count_B) + position_C
    columns: list[np.ndarray] = [
        *(np.repeat(values.numpy(), count_B) for values in (batch.request_id_B, batch.user_id_B, batch.request_ms_B)),
        position_C.astype(np.int32),
        source.item_id_C[chosen_C],
        np.repeat(batch.users_BF[:, 0].numpy() == UNKNOWN, count_B),
        candidates.items[0][chosen_C] == UNKNOWN,
        *probabilities(predictions).numpy().T,
    ]
    if predictions.watch_ratio_C is not None:
        columns.append(predictions.watch_ratio_C.float().cpu().numpy())
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=schema)


def _unknown_users(source: SourceShard) -> int:
    """Requests to score whose user has no vocabulary row."""
    user_row_R = source.columns.user_row[source.rows]
    return int(np.count_nonzero(source.columns.user_fields[0][user_row_R] == UNKNOWN))


def write_refused(path: Path, refused: tuple[Refusal, ...]) -> None:
    """Writes the requests that were not scored, with the reason."""
    columns = {
        "row": pa.array([refusal.row for refusal in refused], pa.int64()),
        "request_id": pa.array([refusal.request_id for refusal in refused], pa.int64()),
        "user_id": pa.array([refusal.user_id for refusal in refused], pa.int64()),
        "reason": pa.array([refusal.reason for refusal in refused], pa.string()),
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
