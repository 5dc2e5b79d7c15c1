"""The raw logs of data.source, found below data.path, and the pieces that workers read."""

from __future__ import annotations

from collections.abc import Iterator

from features.config import DataConfig, FeaturesConfig
from pipelines.sources.csv_text import plan_csv
from pipelines.sources.kuairand import plan_kuairand
from pipelines.sources.parquet_rows import plan_parquet
from pipelines.sources.raw import RawFile, RawLogs, WorkUnit
from pipelines.sources.tabular import plan_tabular


def plan_logs(data: DataConfig, features: FeaturesConfig) -> RawLogs:
    """Finds the raw files of data.source, reading no more of them than headers and footers.

    Raises:
        DataError: nothing is there, or a file cannot be what the configuration says.
    """
    if data.source == "kuairand":
        return plan_kuairand(data, features)
    return plan_tabular(data, features)


def plan_units(file: RawFile, rows_per_unit: int) -> Iterator[WorkUnit]:
    """Cuts a file into work units and counts its rows, for which text has to be read once.

    Args:
        file: what to cut.
        rows_per_unit: of a Parquet file, whose row groups stay whole; text is cut by bytes.
    """
    return plan_parquet(file, rows_per_unit) if file.is_parquet else plan_csv(file)
