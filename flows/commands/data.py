"""`hstu2 data`: make or fetch raw logs. A command imports what it needs when it runs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from flows.commands.fetch import fetch
from flows.commands.window import window

app = typer.Typer(help="Make logs to try things with, or fetch published ones.", no_args_is_help=True)
app.command()(fetch)
app.command()(window)


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="Folder to write, e.g. data/raw/synthetic.")],
    num_events: Annotated[int, typer.Option(min=1, help="How many impressions.")] = 200_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 7,
    dirty: Annotated[bool, typer.Option("--dirty", help="Mix in broken and duplicated rows.")] = False,
) -> None:
    """Write synthetic logs in KuaiRand's format, with interests that a user's history tells."""
    from pipelines.sources.synthetic import SyntheticSettings, write_kuairand_logs

    log_to_terminal()
    write_kuairand_logs(out, SyntheticSettings(num_events=num_events, seed=seed, dirty=dirty))
    typer.echo(f"{out}: about {num_events:,} impressions; next: hstu2 run --data {out} --source kuairand")


@app.command()
def mirror(
    url: Annotated[str, typer.Argument(help="A folder of raw logs at s3://, gs:// or another store.")],
) -> None:
    """Copy raw logs from a URL to the disk, or bring the copy up to date; `hstu2 run` does it by itself."""
    folder = local_logs(url)
    typer.echo(f"{folder}: as {url}; next: hstu2 run --data {url}")


def local_logs(location: str) -> Path:
    """The folder of raw logs that a path or a URL stands for; a URL's copy is brought up to date."""
    from features.storage import is_url
    from pipelines.raw_mirror import mirror_folder, refresh_mirror

    if not is_url(location):
        return Path(location)
    folder = mirror_folder(location)
    refresh_mirror(location, folder, tell=_tell)
    return folder


def refresh_logs(folder: Path) -> None:
    """Brings a folder up to date that is the copy of a URL."""
    from pipelines.raw_mirror import mirrored_url, refresh_mirror

    url = mirrored_url(folder)
    if url is not None:
        refresh_mirror(url, folder, tell=_tell)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def log_to_terminal() -> None:
    """Shows the log of a command that runs in this process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
