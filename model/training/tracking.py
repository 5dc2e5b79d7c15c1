"""Figures of a running training, for eyes and tools: DVCLive's files, TensorBoard's, or none.

    loss, ne                of the steps since the last point; ne is the mean over the tasks
    tokens_per_second       history tokens and candidates of all ranks
    load_imbalance          largest load of a rank over the ranks' mean, mean over the steps; 1 is balance
    data_wait_share         of the time, waiting for the reader
    gpu_memory_gib          most that this rank's model and step took, on a GPU
    heldout_ne              where train.early_stop looks

They hold times, so they lie beside the stage's outputs, not among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from features.errors import DataError
from model.training import train_config

DVCLIVE_DIRECTORY, TENSORBOARD_DIRECTORY = Path("dvclive"), Path("runs")


class Tracker(Protocol):
    """Takes a point of every curve."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point."""

    def close(self) -> None:
        """Writes what is left."""


class DVCLiveTracker:
    """Writes dvclive/metrics.json and dvclive/plots/, which `dvc plots` and the editors' extensions draw."""

    def __init__(self, directory: Path, *, resume: bool) -> None:
        from dvclive import Live

        class Files(Live):
            """Live without a repository: the stage is DVC's already, and a fresh clone has nothing to compare with."""

            def _init_dvc(self) -> None:
                self._dvc_file = "dvc.yaml"

        self._live = Files(
            str(directory), resume=resume, report=None, save_dvc_exp=False, dvcyaml=None, monitor_system=False
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point."""
        self._live.step = step
        for name, value in figures.items():
            self._live.log_metric(name, value)
        self._live.make_summary()

    def close(self) -> None:
        """Writes what is left."""
        self._live.end()


class TensorBoardTracker:
    """Writes event files into runs/."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise DataError(
                "params.yaml: train.tracking: 'tensorboard' needs the package tensorboard: pip install tensorboard"
            ) from None
        self._writer = SummaryWriter(str(directory))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def open_trackers(names: Sequence[train_config.Tracker], root: Path, *, resume: bool) -> list[Tracker]:
    """The trackers of params.yaml, writing into folders of `root`.

    Raises:
        DataError: one needs a package that is not installed.
    """
    trackers: list[Tracker] = []
    for name in names:
        if name == "dvclive":
            trackers.append(DVCLiveTracker(root / DVCLIVE_DIRECTORY, resume=resume))
        else:
            trackers.append(TensorBoardTracker(root / TENSORBOARD_DIRECTORY))
    return trackers
