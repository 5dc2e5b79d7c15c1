"""The checkpoints of an unfinished run: the newest usable one is continued."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from features.errors import DataError
from model.training.checkpoint import Checkpoint, load_checkpoint, load_header, save_checkpoint
from model.training.distributed import World

logger = logging.getLogger(__name__)


class CheckpointStore:
    """Checkpoints of one unfinished run, a directory per step; those of another run are removed, not continued."""

    def __init__(self, directory: Path, run_hash: str, world: World | None = None) -> None:
        self._directory = directory
        self._run_hash = run_hash
        self._world = world or World()

    def latest(self) -> Checkpoint | None:
        """The newest usable checkpoint of this run; anything else is removed, and said so."""
        if not self._world.is_first:
            path = self._world.from_first(None)
            return None if path is None else load_checkpoint(path)
        for path in sorted(self._directory.glob("step-*"), reverse=True):
            checkpoint = self._usable(path)
            if checkpoint is not None:
                self._world.from_first(path)
                return checkpoint
            shutil.rmtree(path)
        self._world.from_first(None)
        return None

    def _usable(self, path: Path) -> Checkpoint | None:
        try:
            if load_header(path).run_hash == self._run_hash:
                return load_checkpoint(path)
            logger.info("train: %s belongs to a run with other data or settings, removed", path)
        except DataError as error:
            logger.warning("train: checkpoint is unusable, removed: %s", error)
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, then removes the older ones; called by all ranks alike."""
        target = self._directory / f"step-{checkpoint.header.step:012d}"
        save_checkpoint(target, checkpoint, self._world)
        if self._world.is_first:
            for path in self._directory.glob("step-*"):
                if path != target:
                    shutil.rmtree(path)
                    path.with_name(f".{path.name}.lock").unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all of them: the run is complete."""
        if self._world.is_first:
            shutil.rmtree(self._directory, ignore_errors=True)
