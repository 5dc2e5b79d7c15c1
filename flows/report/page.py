"""From the inputs to the page: what each section says, then one template."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from features.dataset import open_dataset
from features.files import atomic_file
from flows.report import figures
from flows.report.inputs import ReportInputs, ReportPaths, TaskFigures, read_inputs
from flows.report.lengths import LengthShares, measure_lengths
from flows.report.masks import DrawnMask, draw_mask
from flows.report.size import model_size

FOLDER = Path(__file__).parent
OTHER_GROUP = "other"
SOURCES = {"kuairand": "KuaiRand-format", "csv": "CSV", "parquet": "Parquet"}
# The sections that what is on the page depends on.
SHOWN_SECTIONS = ("data", "features", "model", "train", "evaluate")


@dataclass(frozen=True)
class Headline:
    """One figure at the top of the page and what it means."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class TaskRow:
    """A task's figures as text."""

    name: str
    figures: TaskFigures
    gain: float | None

    @property
    def auc_gain(self) -> float | None:
        """AUC above the floor's."""
        return _difference(self.figures.auc, self.figures.floor_auc)


@dataclass(frozen=True)
class TaskGroup:
    """Tasks whose mean NE is one number, and that number."""

    name: str
    rows: tuple[TaskRow, ...]
    ne: float | None
    floor_ne: float | None

    @property
    def gain(self) -> float | None:
        """By which share NE is below the floor's."""
        return relative_gain(self.ne, self.floor_ne)


@dataclass(frozen=True)
class ActionRow:
    """Share of each stream's events that carry an action."""

    name: str
    shares: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class StreamView:
    """A stream's figures and, where the model has a transducer for it, the mask as drawn."""

    name: str
    lengths: LengthShares
    lengths_figure: str
    layers: str | None
    drawn: DrawnMask | None
    mask_figure: str | None


def relative_gain(value: float | None, floor: float | None) -> float | None:
    """By which share `value` is below `floor`."""
    return None if value is None or not floor else (floor - value) / floor


def _difference(value: float | None, floor: float | None) -> float | None:
    return None if value is None or floor is None else value - floor


def evaluation_days(inputs: ReportInputs) -> tuple[datetime.date, datetime.date]:
    """First and last local day of the evaluation window."""
    last = inputs.events.last_day
    return last - datetime.timedelta(days=inputs.data.eval_days - 1), last


def task_groups(inputs: ReportInputs) -> list[TaskGroup]:
    """The evaluated tasks by configured group; tasks of none come last."""
    evaluation, groups = inputs.evaluation, inputs.evaluate.groups
    named = {task for tasks in groups.values() for task in tasks}
    members: dict[str, tuple[str, ...]] = {str(name): tasks for name, tasks in groups.items()}
    members[OTHER_GROUP] = tuple(task for task in evaluation.tasks if task not in named)
    means: dict[str, tuple[float | None, float | None]] = {
        "consumption": (evaluation.c_ne, evaluation.floor_c_ne),
        "engagement": (evaluation.e_ne, evaluation.floor_e_ne),
    }
    result = []
    for name, tasks in members.items():
        found = [(task, evaluation.tasks[task]) for task in tasks if task in evaluation.tasks]
        rows = tuple(TaskRow(task, one, relative_gain(one.ne, one.floor_ne)) for task, one in found)
        if rows:
            result.append(TaskGroup(name, rows, *means.get(name, (None, None))))
    return result


def action_rows(inputs: ReportInputs) -> list[ActionRow]:
    """Action mix of the streams, the actions in the order of the settings."""
    streams = list(inputs.streams.streams.values())
    rows = []
    for action in inputs.features.actions:
        counts = tuple(stream.actions.get(action, 0) for stream in streams)
        shares = tuple(count / max(stream.events, 1) for count, stream in zip(counts, streams, strict=True))
        rows.append(ActionRow(action, shares, counts))
    return rows


def headlines(inputs: ReportInputs) -> list[Headline]:
    """The figures that a reader wants first."""
    evaluation, streams = inputs.evaluation, inputs.streams
    size = model_size(inputs.model, inputs.manifest.spec)
    result = [
        Headline("events", f"{streams.events:,}", f"{len(inputs.events.days)} days"),
        Headline("users", f"{streams.users:,}", f"{inputs.vocab['item'].size - 2:,} items in the vocabulary"),
        Headline("scored candidates", f"{evaluation.num_candidates:,}", f"in {evaluation.num_requests:,} requests"),
        Headline(
            "parameters", short(size.dense + size.tables), f"{short(size.dense)} dense, {short(size.tables)} in tables"
        ),
    ]
    for label, value, floor in (
        ("C-NE", evaluation.c_ne, evaluation.floor_c_ne),
        ("E-NE", evaluation.e_ne, evaluation.floor_e_ne),
    ):
        gain = relative_gain(value, floor)
        note = "" if gain is None else f"floor {floor:.4f}, {_below(gain)}"
        result.append(Headline(label, number(value), note))
    return result


def _below(gain: float) -> str:
    return f"{100 * abs(gain):.1f} % {'better' if gain >= 0 else 'worse'}"


def short(value: float) -> str:
    """A count in at most four characters and a unit."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.1f}\u202f{letter}"
    return f"{value:.0f}"


def number(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def plain(value: Any) -> str:
    """Any scalar of a metrics file as a reader expects it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "–" if value is None else str(value)


def period(first: datetime.date, last: datetime.date) -> str:
    """Two days as people write them."""
    if first == last:
        return f"{last.day} {last:%B %Y}"
    start = f"{first.day}" if (first.year, first.month) == (last.year, last.month) else f"{first.day} {first:%B}"
    start += f" {first.year}" if first.year != last.year else ""
    return f"{start} to {last.day} {last:%B %Y}"


def sections_text(text: str, names: tuple[str, ...]) -> str:
    """The text of some top-level sections of a YAML file, comments and all."""
    kept, keeping = [], False
    for line in text.splitlines():
        if line and line[0] not in " #":
            keeping = line.split(":")[0] in names
        if keeping:
            kept.append(line)
    return "\n".join(kept).strip()


def stream_views(inputs: ReportInputs, lengths: dict[str, LengthShares]) -> list[StreamView]:
    """Figures of every stream of the dataset."""
    views = []
    for name, shares in lengths.items():
        stream = inputs.model.streams.get(name)
        drawn = None if stream is None else draw_mask(inputs.model, stream)
        figure = figures.lengths_figure(shares, None if stream is None else stream.max_length)
        layers = None
        if stream is not None:
            cuts = [f"after layer {layer} the newest {keep:,} go on" for layer, keep in stream.pyramid]
            plural = "" if stream.num_layers == 1 else "s"
            depth = f"{stream.num_layers} layer{plural} over at most {stream.max_length:,} events"
            layers = "; ".join([depth, *cuts])
        views.append(
            StreamView(
                name=name,
                lengths=shares,
                lengths_figure=figures.fragment(figure, f"lengths-{name}"),
                layers=layers,
                drawn=drawn,
                mask_figure=None if drawn is None else figures.fragment(figures.mask_figure(drawn), f"mask-{name}"),
            )
        )
    return views


def render(inputs: ReportInputs, lengths: dict[str, LengthShares]) -> str:
    """The page."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "plain": plain, "signed": figures.signed}
    groups = task_groups(inputs)
    order = {row.name: place for place, row in enumerate(row for group in groups for row in group.rows)}
    gains = [(row.name, row.gain) for group in groups for row in group.rows if row.gain is not None]
    gain_figure = figures.ne_gain_figure([name for name, _ in gains], [gain for _, gain in gains])
    loss_figure = figures.loss_figure(inputs.losses["step"], inputs.losses["loss"])
    return environment.get_template("page.html.j2").render(
        inputs=inputs,
        source=SOURCES[inputs.data.source],
        settings=sections_text(inputs.params, SHOWN_SECTIONS),
        headlines=headlines(inputs),
        data_period=period(inputs.events.first_day, inputs.events.last_day),
        evaluation_period=period(*evaluation_days(inputs)),
        groups=groups,
        gain_figure=figures.fragment(gain_figure, "ne-gain") if gains else None,
        loss_figure=figures.fragment(loss_figure, "loss"),
        calibrations={
            task: figures.fragment(figures.calibration_figure(points), f"calibration-{task}")
            for task, points in sorted(inputs.calibration.items(), key=lambda item: order.get(item[0], len(order)))
        },
        actions=action_rows(inputs),
        streams=stream_views(inputs, lengths),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        plotly=get_plotlyjs(),
    )


def write_report(paths: ReportPaths, out: Path) -> None:
    """Reads the stages' figures and writes the page; equal inputs give equal bytes.

    Raises:
        DataError: names the input that is missing or is not as expected.
    """
    inputs = read_inputs(paths)
    lengths = measure_lengths(open_dataset(paths.streams, verify=False))
    page = render(inputs, lengths)
    with atomic_file(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
