"""`hstu2 retrain`: one data date, a range of them, or tonight's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from features.errors import DataError


def retrain(
    date: Annotated[
        str | None, typer.Option(help="Data date, YYYY-MM-DD; without it the newest one that is missing.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", help="Back-fill: first data date.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Back-fill: last data date.")] = None,
    base: Annotated[str, typer.Option(help="Commit, branch or tag whose code and settings to run.")] = "HEAD",
    force: Annotated[bool, typer.Option("--force", help="Run it even if nothing has changed.")] = False,
    wait_minutes: Annotated[
        float, typer.Option("--wait", min=0, help="Minutes to wait for the logs, even after their deadline.")
    ] = 0.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would run and why, and run nothing.")] = False,
) -> None:
    """Retrain on a data date: wait for its logs, run the stages, judge, promote or keep, commit, upload.

    It works in nightly/workspace on committed code; your files, branches and index stay as they are. A date that was
    run is run again only when its logs have changed.
    """
    from flows.nightly.dates import days_of
    from flows.nightly.workspace import NightlyPlaces, resolve
    from flows.retrain import parse_date, run_dates, tonight

    if date is not None and (first is not None or last is not None):
        raise DataError("give --date, or --from and --to")
    if (first is None) != (last is None):
        raise DataError("give both --from and --to")
    places = NightlyPlaces(Path.cwd())
    if date is not None:
        dates = [parse_date(date)]
    elif first is not None and last is not None:
        dates = days_of(parse_date(first), parse_date(last))
        if not dates:
            raise DataError(f"--from {first} --to {last}: there is no date between them")
    else:
        todo = tonight(places, base)
        if todo.later:
            typer.echo(f"also missing: {', '.join(map(str, todo.later))}; run them with --from and --to")
        dates = [] if todo.run is None else [todo.run]
        if not dates:
            typer.echo("every date up to tonight's has been run")
            return
    if dry_run:
        from flows.nightly.dry_run import describe_night

        commit = resolve(places.root, base)
        for day in dates:
            typer.echo("\n".join(describe_night(places, day, commit, force=force)))
        return
    raise typer.Exit(run_dates(places.root, dates, base=base, force=force, patience=60 * wait_minutes))
