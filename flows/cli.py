"""The `hstu2` command. Commands import what they need when they run, so that `--help` answers at once."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import DataError
from flows.commands.cluster import app as cluster_app
from flows.commands.cluster import beam_settings
from flows.commands.data import app as data_app
from flows.commands.data import local_logs, refresh_logs
from flows.commands.dataset import app as dataset_app
from flows.commands.models import app as models_app
from flows.commands.retrain import retrain
from flows.commands.score import score
from flows.commands.window import accept_drift

PARAMS = Path("params.yaml")
EVENTS_STATS = Path("data/events/stats.json")

app = typer.Typer(
    help="From raw interaction logs to a trained, evaluated HSTU 2.0 ranking model. Run it in the repository's root.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(dataset_app, name="dataset")
app.add_typer(models_app, name="models")
app.command()(retrain)
app.add_typer(cluster_app, name="cluster")
app.command()(score)


class Source(StrEnum):
    """Formats of raw logs."""

    kuairand = "kuairand"
    movielens = "movielens"
    otto = "otto"
    taobao = "taobao"
    yambda = "yambda"
    parquet = "parquet"
    csv = "csv"
    jsonl = "jsonl"


@app.command()
def run(
    data: Annotated[
        str | None,
        typer.Option(
            help="Folder of raw logs, or a URL of one, of which a copy is kept in data/raw;"
            " written to params.yaml (data.path) for later runs."
        ),
    ] = None,
    source: Annotated[Source | None, typer.Option(help="Format of the logs (data.source in params.yaml).")] = None,
    until: Annotated[
        str | None,
        typer.Option(
            help="Stop after this stage: ingest, vocab, streams, validate, train, evaluate, export, score, report."
        ),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Edit params.yaml first, e.g. --set train.num_epochs=2. May be repeated.",
        ),
    ] = None,
    accept_reason: Annotated[
        str | None,
        typer.Option(
            "--accept-drift",
            metavar="REASON",
            help="Let data pass that the quality gate stopped; kept for its last day in params.yaml (validate.accept).",
        ),
    ] = None,
    beam_options: Annotated[
        str | None,
        typer.Option(
            help="Beam's runner and options, e.g. '--runner=FlinkRunner --flink_master=HOST:8081'; kept in params.yaml."
            " '' goes back to the local runner.",
        ),
    ] = None,
) -> None:
    """Run every stage that is out of date, from raw logs to the report.

    Stages whose code, settings and inputs have not changed are skipped. A second run of the same thing takes seconds.
    """
    from features.config import DataConfig
    from flows.settings import edit_params, parse_assignment

    changes: dict[str, Any] = {}
    if data is not None:
        folder = local_logs(data)
        _check_logs(folder)
        changes["data.path"] = str(folder)
    if source is not None:
        changes["data.source"] = source.value
    if beam_options is not None:
        changes.update(beam_settings(beam_options))
    changes.update(parse_assignment(assignment) for assignment in assignments or ())
    edit_params(PARAMS, changes)
    if accept_reason is not None:
        edit_params(PARAMS, accept_drift(PARAMS, EVENTS_STATS, accept_reason))
    logs = DataConfig.load(PARAMS).path
    if data is None:
        refresh_logs(logs)
    _check_logs(logs)

    from flows.run import run_stages

    try:
        status = run_stages(Path.cwd(), until)
    except KeyboardInterrupt:
        print("hstu2: stopped; the next run continues with the stage that was cut off", file=sys.stderr)
        status = 130
    raise typer.Exit(status)


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(help="A streams dataset, or the URL of a published one.")] = "data/streams",
    user: Annotated[
        int | None, typer.Option(help="Show the streams and requests of this user of the raw logs.")
    ] = None,
    request: Annotated[
        int | None,
        typer.Option(min=0, help="With --user: show one request, 0 = the newest, and its history."),
    ] = None,
    shard: Annotated[int | None, typer.Option(help="Check one shard's files and show its counts.")] = None,
    vocab: Annotated[Path, typer.Option(help="The vocabulary, for the items' raw ids.")] = Path("data/vocab"),
    limit: Annotated[int, typer.Option(min=1, help="Events and requests to show of each.")] = 20,
) -> None:
    """Look into a streams dataset: counts and checks, one shard, one user's streams, one request."""
    from features.remote_dataset import fetch_dataset
    from features.storage import is_url
    from flows.inspect import describe_dataset, describe_request, describe_shard, describe_user

    directory = fetch_dataset(dataset) if is_url(dataset) else Path(dataset)
    if shard is not None and user is not None:
        raise typer.BadParameter("give either --shard or --user")
    if user is None:
        if request is not None:
            raise typer.BadParameter("--request needs --user")
        typer.echo(describe_dataset(directory) if shard is None else describe_shard(directory, shard))
    elif request is None:
        typer.echo(describe_user(directory, user, vocab=vocab, limit=limit))
    else:
        typer.echo(describe_request(directory, user, request, vocab=vocab, limit=limit))


@app.command()
def report(
    out: Annotated[Path, typer.Option(help="Where to write the page.")] = Path("reports/index.html"),
    open_page: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
) -> None:
    """Write the report from the figures that the last run left, one page to show around."""
    from flows.report.inputs import ReportPaths
    from flows.report.page import write_report

    write_report(ReportPaths(), out)
    typer.echo(f"{out}: open it in a browser")
    if open_page:
        typer.launch(str(out))


def _check_logs(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder of raw logs; name one with `hstu2 run --data DIR`,"
            " or make one with `hstu2 data synthesize data/raw/synthetic`"
        )
    if not any(folder.iterdir()):
        raise DataError(f"{folder}: the folder of raw logs is empty")


def main() -> None:
    """Entry of the `hstu2` command: a user's mistake is one line on standard error and exit status 1."""
    try:
        app()
    except DataError as error:
        print(f"hstu2: {error}", file=sys.stderr)
        sys.exit(1)
