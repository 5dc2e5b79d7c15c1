"""`hstu2 cluster`: whether the runner of the settings has what it needs."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(help="Run the stages' pipelines on a cluster.", no_args_is_help=True)


@app.callback()
def cluster() -> None:
    """Keeps `check` a sub-command while it is the only one."""


@app.command()
def check(
    params: Annotated[Path, typer.Option(help="The settings.")] = Path("params.yaml"),
    folder: Annotated[Path, typer.Option(help="Where the stages write; the workers must see it.")] = Path("data"),
) -> None:
    """Say what the runner of params.yaml is missing, or which workers answer."""
    from pipelines.config import PipelinesConfig
    from pipelines.engine import log_to_stderr
    from pipelines.roll_call import roll_call

    log_to_stderr()
    config = PipelinesConfig.load(params)
    answers = roll_call(config, folder)
    typer.echo(f"{config.runner}: {len(answers)} workers answer and share {folder}")
    for answer in answers:
        typer.echo(f"  {answer.host}, process {answer.process}, Python {answer.python}")


def beam_settings(text: str) -> dict[str, Any]:
    """The settings that a command line of Beam options stands for; without --runner the runner stays.

    Args:
        text: options as a shell splits them; empty text means the local runner.
    """
    words, options = shlex.split(text), []
    settings: dict[str, Any] = {} if words else {"pipelines.runner": "local"}
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--runner" and position + 1 < len(words):
            position += 1
            settings["pipelines.runner"] = words[position]
        elif word.startswith("--runner="):
            settings["pipelines.runner"] = word.removeprefix("--runner=")
        else:
            options.append(word)
        position += 1
    return settings | {"pipelines.options": options}
