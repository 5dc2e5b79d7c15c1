"""`hstu2 dataset`: finished streams datasets at a URL."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.data import log_to_terminal

app = typer.Typer(help="Publish finished datasets to a store, or fetch them from one.", no_args_is_help=True)


@app.command()
def publish(
    url: Annotated[str, typer.Argument(help="A folder of a store, e.g. s3://bucket/streams.")],
    dataset: Annotated[Path, typer.Option(help="A streams dataset.")] = Path("data/streams"),
) -> None:
    """Copy a dataset to a URL; readers there see it when it is whole."""
    from features.remote_dataset import publish_dataset

    log_to_terminal()
    publish_dataset(dataset, url)
    typer.echo(f"{url}: holds {dataset}; look at it with hstu2 inspect {url}")


@app.command()
def fetch(url: Annotated[str, typer.Argument(help="Where a dataset was published.")]) -> None:
    """Copy a dataset from a URL to the disk and print where it is; shards are memory-mapped, so they must be there."""
    from features.remote_dataset import fetch_dataset

    log_to_terminal()
    typer.echo(fetch_dataset(url))
