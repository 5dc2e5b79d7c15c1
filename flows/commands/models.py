"""`hstu2 models`: what is in the store of models, and who is the champion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="List models, promote one by hand, go back to the champion before.", no_args_is_help=True)
_FOLDER = Path("models")


@app.command("list")
def list_models() -> None:
    """List the models of the store, newest last, and mark the champion."""
    from flows.models import ModelStore

    store = ModelStore(_FOLDER)
    champion, promoted = store.champion(), store.promoted()
    models = store.all()
    if not models:
        typer.echo(f"{_FOLDER / 'store'}: no models yet; `hstu2 retrain` makes them")
    for stored in models:
        is_champion = champion is not None and champion.model == stored.model
        word = "champion" if is_champion else "promoted before" if stored.model in promoted else "kept"
        typer.echo(f"{stored.model}  {stored.date}  {stored.num_bytes:>13,} bytes  {word}")


@app.command()
def promote(
    model: Annotated[str, typer.Argument(help="Id of a stored model, or how it begins.")],
) -> None:
    """Make a model of the store the champion, whatever the gate said."""
    import getpass

    from flows.models import ModelStore

    store = ModelStore(_FOLDER)
    stored = store.get(model)
    promotion = store.promote(stored.model, stored.date, by=f"{getpass.getuser()}, by hand")
    typer.echo(f"{promotion.model} of {promotion.date} is the champion")


@app.command()
def rollback() -> None:
    """Make the champion before the present one the champion again."""
    from flows.models import ModelStore

    promotion = ModelStore(_FOLDER).rollback()
    typer.echo(f"{promotion.model} of {promotion.date} is the champion again")
