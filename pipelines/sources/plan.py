"""The raw logs of data.source, found below data.path and cut into work units."""

from __future__ import annotations

from features.config import DataConfig, FeaturesConfig
from pipelines.sources.kuairand import plan_kuairand
from pipelines.sources.raw import RawLogs
from pipelines.sources.tabular import plan_tabular


def plan_logs(data: DataConfig, features: FeaturesConfig, rows_per_unit: int) -> RawLogs:
    """Finds the raw files of data.source and cuts them into work units.

    Raises:
        DataError: nothing is there, or a file cannot be what the configuration says.
    """
    if data.source == "kuairand":
        return plan_kuairand(data, features)
    return plan_tabular(data, features, rows_per_unit)
