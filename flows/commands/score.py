"""`hstu2 score`: scores requests with an exported bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def score(
    requests: Annotated[
        Path | None,
        typer.Option(help="Parquet file of requests (docs/inference.md); the evaluation window without it."),
    ] = None,
    bundle: Annotated[Path, typer.Option(help="What the stage export wrote, or a copy of a bundle.")] = Path(
        "models/bundle"
    ),
    streams: Annotated[Path, typer.Option(help="The users' streams.")] = Path("data/streams"),
    out: Annotated[Path, typer.Option(help="Folder of the scores, a Parquet file per shard.")] = Path("data/scores"),
    params: Annotated[Path, typer.Option(help="The settings; section score is read.")] = Path("params.yaml"),
) -> None:
    """Score candidates: a probability per task, histories encoded once per request.

    A killed job goes on with the shards that are missing when the same command runs again.
    """
    from model.score import ScorePaths
    from model.score import score as run
    from model.stage import log_to_stderr

    log_to_stderr()
    run(ScorePaths(params=params, bundle=bundle, streams=streams, requests=requests, out=out))
    typer.echo(f"{out}: scored, manifest.json has the counts")
