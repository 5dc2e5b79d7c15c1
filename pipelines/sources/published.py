"""Finding the files of a published dataset, from a description of what it looks like when it is unpacked."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from features.calendar import day_start_ms
from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from pipelines.sources.actions import ActionTable, with_actions
from pipelines.sources.forms import open_file
from pipelines.sources.raw import (
    FileForm,
    LogLayout,
    RawFile,
    RawLogs,
    SideColumn,
    SideTable,
    TimeRange,
    check_folder,
    require_columns,
)


@dataclass(frozen=True)
class SideFiles:
    """Static features that a dataset has.

    Attributes:
        key_column: the files' column of the id.
        categories: what features may name.
        files: pattern of the files and their form; none when the log's own columns tell.
    """

    key_column: str
    categories: Mapping[str, SideColumn]
    files: Mapping[str, FileForm] = field(default_factory=dict)


@dataclass(frozen=True)
class Window:
    """The local days [first, last] that a dataset is said to span; rows of other days are broken ones."""

    first: datetime.date
    last: datetime.date
    timezone: str


@dataclass(frozen=True)
class Dataset:
    """A published dataset, in one of the shapes in which it is published.

    Attributes:
        logs: pattern of the log files and their form.
        layout: which columns hold what, but for the actions.
        actions: the actions that features may name.
        users, items: static features; None when there are none.
        window: see Window.
    """

    logs: Mapping[str, FileForm]
    layout: LogLayout
    actions: ActionTable
    users: SideFiles | None = None
    items: SideFiles | None = None
    window: Window | None = None


def plan_published(name: str, shapes: tuple[Dataset, ...], data: DataConfig, features: FeaturesConfig) -> RawLogs:
    """Finds a dataset in data.path or its folder `data`.

    Args:
        name: of the dataset, for messages.
        shapes: in which it may be there.
        data, features: the configuration.

    Raises:
        DataError: no log is there or more than one, a file lacks a column, or the dataset has no such action or
            category.
    """
    check_folder(data.path)
    dataset, folder = _find(shapes, data.path)
    for action in features.actions:
        _require(action, dataset.actions.names, f"features.actions: '{action}' is unknown, {name} has")
    layout = with_actions(dataset.layout, dataset.actions, features.actions)
    files = _open_all(data.path, folder, dataset.logs)
    for file in files:
        require_columns(file, layout.columns, f"a column of {name}'s log")
    users = _side_table(dataset.users, files, data.path, folder=folder, wanted=features.user_categories, kind="user")
    items = _side_table(dataset.items, files, data.path, folder=folder, wanted=features.item_categories, kind="item")
    return RawLogs(files, layout, _times(data, dataset.window), users, items)


def _find(shapes: tuple[Dataset, ...], root: Path) -> tuple[Dataset, Path]:
    found = [
        (shape, folder)
        for shape in shapes
        for folder in (root, root / "data")
        if any(_matches(folder, pattern) for pattern in shape.logs)
    ]
    if not found:
        patterns = " or ".join(dict.fromkeys(pattern for shape in shapes for pattern in shape.logs))
        raise DataError(f"{root}: no {patterns} in it or in its folder 'data' (data.path)")
    if len(found) > 1 and found[0][1] != found[1][1]:
        raise DataError(f"{root}: logs both in it and in its folder 'data', keep one of them")
    if len(found) > 1:
        first, second = (next(p for p in shape.logs if _matches(folder, p)) for shape, folder in found[:2])
        raise DataError(f"{root}: both {first} and {second} are there, which hold the same events; keep one of them")
    return found[0]


def _matches(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if path.is_file()]


def _open_all(root: Path, folder: Path, patterns: Mapping[str, FileForm]) -> tuple[RawFile, ...]:
    forms = {path: form for pattern, form in patterns.items() for path in _matches(folder, pattern)}
    return tuple(
        open_file(path, path.relative_to(root).as_posix(), rank, forms[path]) for rank, path in enumerate(sorted(forms))
    )


def _side_table(
    side: SideFiles | None,
    logs: tuple[RawFile, ...],
    root: Path,
    *,
    folder: Path,
    wanted: tuple[str, ...],
    kind: str,
) -> SideTable:
    key, setting = "user_id" if kind == "user" else "item_id", f"features.{kind}_categories"
    known = {} if side is None else side.categories
    for name in wanted:
        _require(name, tuple(known), f"{setting}: '{name}' is unknown, the dataset has")
    categories = tuple(known[name] for name in wanted)
    if side is None:
        return SideTable("user_id" if kind == "user" else "item_id", key, (), ())
    files = _open_all(root, folder, side.files)
    if wanted and side.files and not files:
        raise DataError(f"{folder}: no {' or '.join(side.files)}, which {setting} needs for '{wanted[0]}'")
    if not side.files:
        files = logs if wanted else ()
    table = SideTable(
        "user_id" if kind == "user" else "item_id", side.key_column, categories, files, repeats=not side.files
    )
    for file in files:
        require_columns(file, table.columns, setting)
    return table


def _require(name: str, known: tuple[str, ...], complaint: str) -> None:
    if name not in known:
        raise DataError(f"{complaint} {', '.join(known) or 'none'}")


def _times(data: DataConfig, window: Window | None) -> TimeRange:
    times = TimeRange.of(data)
    if window is None:
        return times
    after = window.last + datetime.timedelta(days=1)
    first_ms, after_ms = day_start_ms(window.first, window.timezone), day_start_ms(after, window.timezone)
    if times.earliest_ms < first_ms or times.latest_ms > after_ms:
        times = replace(times, text=f"{max(data.earliest, window.first)}..{min(data.latest, after)}")
    return replace(times, earliest_ms=max(times.earliest_ms, first_ms), latest_ms=min(times.latest_ms, after_ms))
