"""`hstu2 data fetch`: a published dataset into a folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from flows.fetch.catalog import PUBLISHED

Name = StrEnum("Name", {name: name for name in PUBLISHED})  # type: ignore[misc]


def fetch(
    name: Annotated[Name, typer.Argument(help="Which dataset; docs/sources.md says what they are.")],
    to: Annotated[Path, typer.Option(help="Folder to fill, e.g. data/raw/ml-1m.")],
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Keep archives once unpacked.")] = False,
) -> None:
    """Download, check and unpack a published dataset.

    Run it again after an interruption: it goes on where it was cut off. Mind the dataset's licence.
    """
    from flows.commands.data import log_to_terminal
    from flows.fetch.dataset import fetch_dataset

    log_to_terminal()
    published = PUBLISHED[name.value]
    record = fetch_dataset(name.value, published, to, keep_archives=keep_archives)
    num_bytes = sum(record.files.values())
    typer.echo(
        f"{to}: {len(record.files)} files, {num_bytes:,} bytes; next: the settings of docs/sources.md for"
        f" {published.source} into params.yaml, then hstu2 run --data {to} --source {published.source}"
    )
