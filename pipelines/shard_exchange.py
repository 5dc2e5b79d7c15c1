"""The streams stage's steps for workers that share no disk: everything goes through a URL that all of them reach.

The driver puts the inputs there, workers leave their spill files and finished shards, and the driver takes the shards
and removes the folder. Spill files are read in ranges: a shard fetches its own batches and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import socket
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from features.hashing import shard_of
from features.manifest import REQUESTS_FILE, USERS_FILE, shard_name
from features.storage import Remote, is_url
from pipelines.events import Unit, read_part
from pipelines.shard_build import StreamsPlan, shard_job, write_shard
from pipelines.spill import SpillRef, spill_path, write_spill
from pipelines.steps import Job, Step

_LOG = logging.getLogger(__name__)
_SIDE_TABLES = ("items.parquet", "users.parquet")


@contextmanager
def exchanged_job(spill: str | None, units: list[Unit], plan: StreamsPlan) -> Iterator[Job]:
    """The job from work units to shards in `plan.out`, over the disk or over a URL.

    Args:
        spill: `pipelines.spill`; without a URL all workers see the paths of `units` and `plan`.
        units: what to read.
        plan: what to build.

    Raises:
        DataError: the URL does not take the files or does not give them back.
    """
    if spill is None or not is_url(spill):
        yield shard_job(units, plan)
        return
    remote = Remote(f"{spill.rstrip('/')}/streams-{_token(plan.out)}")
    remote.remove()  # what a killed run left: one run writes a target at a time
    try:
        names = _give(remote, units, plan)
        there = RemotePlan(remote, plan)
        # Units name their files as they are called at the URL.
        yield Job([_renamed(unit, names) for unit in units], SpillRemote(there), BuildRemote(there))
        _take(remote, plan)
    finally:
        remote.remove()


def _token(out: Path) -> str:
    """Names the target, not the run: the temporary folder's own name is another one each time."""
    return hashlib.sha256(f"{socket.gethostname()} {out.parent}".encode()).hexdigest()[:12]


def _renamed(unit: Unit, names: dict[str, str]) -> Unit:
    parts = tuple(dataclasses.replace(part, path=names[part.path]) for part in unit.parts)
    return dataclasses.replace(unit, parts=parts)


def _give(remote: Remote, units: list[Unit], plan: StreamsPlan) -> dict[str, str]:
    """Copies the inputs to the URL; the names there of the event files, by path."""
    names = {
        path: f"events/{number:06d}.parquet"
        for number, path in enumerate(sorted({part.path for unit in units for part in unit.parts}))
    }
    for path, name in names.items():
        remote.upload(Path(path), name)
    for name in _SIDE_TABLES:
        remote.upload(plan.events / name, f"side/{name}")
    for file in sorted(plan.vocab.iterdir()):
        remote.upload(file, f"vocab/{file.name}")
    _LOG.info("%s: %d event files for the workers", remote.url, len(names))
    return names


def _take(remote: Remote, plan: StreamsPlan) -> None:
    """Copies the shards and their reports to where they would be had the workers shared this disk."""
    for file in remote.files():
        folder, _, name = file.name.partition("/")
        if folder == "out":
            remote.download(file.name, plan.out / name)


@dataclasses.dataclass(frozen=True)
class RemotePlan:
    """What a worker needs that shares nothing but a URL with the driver."""

    remote: Remote
    plan: StreamsPlan

    def local_plan(self, folder: Path) -> StreamsPlan:
        """The plan with its inputs in a folder of the worker's own."""
        for file in self.remote.files():
            if file.name.startswith(("side/", "vocab/")):
                self.remote.download(file.name, folder / file.name)
        plan = dataclasses.replace(self.plan, events=folder / "side", vocab=folder / "vocab", out=folder / "out")
        plan.work.mkdir(parents=True)
        return plan


class SpillRemote(Step):
    """A work unit in, (shard, reference) pairs out; the spill file is at the URL."""

    def __init__(self, plan: RemotePlan) -> None:
        self._plan = plan

    def process(self, unit: Unit) -> Iterator[tuple[int, SpillRef]]:
        """Reads the unit's row groups, splits and spills."""
        remote, tables = self._plan.remote, []
        for part in unit.parts:
            with remote.open(part.path) as file, pq.ParquetFile(file) as source:
                tables.append(read_part(source, part))
        table = pa.concat_tables(tables)
        shards = shard_of(table.column("user_id").to_numpy(), self._plan.plan.num_shards)
        with tempfile.TemporaryDirectory(prefix="hstu2-") as folder:
            refs = write_spill(table, shards, Path(folder), unit.name)
            path = spill_path(Path(folder), unit.name)
            remote.upload(path, f"spill/{path.name}")
        for ref in refs:
            yield ref.partition, ref._replace(path=f"spill/{path.name}")


class BuildRemote(Step):
    """(shard, references) in; the shard's finished files and its report at the URL."""

    def __init__(self, plan: RemotePlan) -> None:
        self._remote = plan

    def setup(self) -> None:
        """Fetches and loads the lookups once per worker."""
        self._folder = tempfile.TemporaryDirectory(prefix="hstu2-")
        self._plan = self._remote.local_plan(Path(self._folder.name))
        self._encoder = self._plan.encoder()

    def teardown(self) -> None:
        """Removes what was fetched."""
        self._folder.cleanup()

    def process(self, element: tuple[int, Iterable[SpillRef]]) -> None:
        """Builds one shard here and hands it over, the report last."""
        (shard, refs), remote, plan = element, self._remote.remote, self._plan
        write_shard(plan, self._encoder, shard, read=lambda: read_remote_spill(remote, refs))
        folder = plan.out / shard_name(shard, plan.num_shards)
        for path in (folder / USERS_FILE, folder / REQUESTS_FILE, plan.report_path(shard)):
            remote.upload(path, f"out/{path.relative_to(plan.out).as_posix()}")
            path.unlink()


def read_remote_spill(remote: Remote, refs: Iterable[SpillRef]) -> pa.Table:
    """The rows of all references, ordered by path and batch whatever the order of `refs`; see `spill.read_spill`."""
    tables = []
    for ref in sorted(refs, key=lambda ref: (ref.path, ref.batch)):
        with remote.open(ref.path) as file:
            batch = pa.ipc.open_file(pa.PythonFile(file, mode="r")).get_batch(ref.batch)
        if batch.num_rows != ref.rows:
            raise RuntimeError(f"{remote.at(ref.path)}: batch {ref.batch} has {batch.num_rows} rows, not {ref.rows}")
        tables.append(pa.Table.from_batches([batch]))
    return pa.concat_tables(tables)
