"""`hstu2 data window`: which days the dataset holds."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import DataError

_DATE = "%Y-%m-%d"
_MAX_NAMED = 7


def window(
    until: Annotated[datetime | None, typer.Option(formats=[_DATE], help="Last local day, e.g. 2022-05-08.")] = None,
    days: Annotated[int | None, typer.Option(min=1, help="How many days.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="No window: all days that the logs have.")] = False,
    params: Annotated[Path, typer.Option(help="The settings to edit.")] = Path("params.yaml"),
) -> None:
    """Set the days that the dataset holds (data.window in params.yaml), and tell which of them the logs have.

    Raw files that were not read before are read now, into the store that the next run uses.
    """
    from flows.settings import edit_params
    from pipelines.engine import log_to_stderr
    from pipelines.increment_window import find_days

    if (until is None) != (days is None) or (until is None) != everything:
        raise typer.BadParameter("give --until and --days, or --all")
    if until is None:
        edit_params(params, {"data.window": None})
        typer.echo(f"{params}: no window, all days of the logs")
        return
    last = until.strftime(_DATE)
    edit_params(params, {"data.window": {"until": last, "days": days}})
    typer.echo(f"{params}: window of {days} day(s) until {last}")
    log_to_stderr()
    found = find_days(params)
    typer.echo(f"{len(found.rows)} day(s) with {sum(found.rows.values()):,} rows{_range(list(found.rows))}")
    if found.missing:
        typer.echo(f"{len(found.missing)} day(s) missing: {_named(found.missing)}")
    if found.outside:
        typer.echo(f"{len(found.outside)} day(s) outside with {sum(found.outside.values()):,} rows")


def accept_drift(params: Path, stats: Path, reason: str) -> dict[str, Any]:
    """The change of params.yaml that lets tonight's drift pass: for the last day of the window, or of the last ingest.

    Raises:
        DataError: neither tells which day it is.
    """
    from features.config import DataConfig
    from features.files import read_json

    if not reason.strip():
        raise DataError("--accept-drift: say why, the reason is kept with the data")
    chosen = DataConfig.load(params).window
    if chosen is None and not stats.exists():
        raise DataError(f"--accept-drift: {stats} is missing, so there is no drift to accept yet; run without it first")
    until = read_json(stats)["window"][1] if chosen is None else chosen.until.isoformat()
    return {"validate.accept": {"until": until, "reason": reason}}


def _range(days: list[str]) -> str:
    return f", {days[0]} to {days[-1]}" if days else ""


def _named(days: tuple[str, ...]) -> str:
    more = f" and {len(days) - _MAX_NAMED} more" if len(days) > _MAX_NAMED else ""
    return ", ".join(days[:_MAX_NAMED]) + more
