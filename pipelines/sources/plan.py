"""The raw logs of data.source, found below data.path."""

from __future__ import annotations

from features.config import DataConfig, FeaturesConfig
from pipelines.sources.catalog import DATASETS
from pipelines.sources.forms import plan_units
from pipelines.sources.published import plan_published
from pipelines.sources.raw import RawLogs
from pipelines.sources.tabular import plan_tabular

__all__ = ["plan_logs", "plan_units"]


def plan_logs(data: DataConfig, features: FeaturesConfig) -> RawLogs:
    """Finds the raw files of data.source, reading no more of them than headers and footers.

    Raises:
        DataError: nothing is there, or a file cannot be what the configuration says.
    """
    if data.source not in DATASETS:
        return plan_tabular(data, features)
    name, shapes = DATASETS[data.source]
    return plan_published(name, shapes, data, features)
