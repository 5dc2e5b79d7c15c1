"""Parquet, CSV and JSON lines logs of any shape, through the column mapping data.tabular."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from features.config import DataConfig, FeaturesConfig, TabularMapping
from features.config import SideTable as SideTableConfig
from features.errors import DataError
from pipelines.sources.actions import ActionTable, NumberRange, with_actions
from pipelines.sources.forms import open_file
from pipelines.sources.parquet_rows import check_types
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


def plan_tabular(data: DataConfig, features: FeaturesConfig) -> RawLogs:
    """Finds the files that match data.tabular.pattern below data.path, sorted by their path.

    Raises:
        DataError: no file matches, a mapped column is missing or has a type that its use cannot have, or the mapping
            does not fit `features`.
    """
    assert data.tabular is not None
    mapping = data.tabular
    check_folder(data.path)
    layout = tabular_layout(mapping, features)
    users = _side_table(data.path, mapping.users, features.user_categories, key="user_id")
    items = _side_table(data.path, mapping.items, features.item_categories, key="item_id")
    side_paths = {Path(file.path).resolve() for table in (users, items) for file in table.files}
    files = _find(data, mapping.pattern, side_paths)
    for file in files:
        require_columns(file, layout.columns, "data.tabular maps it")
        if file.form.kind == "parquet":
            check_types(file, layout)
    return RawLogs(files, layout, TimeRange.of(data), users, items)


def tabular_layout(mapping: TabularMapping, features: FeaturesConfig) -> LogLayout:
    """The mapping with its actions as bits.

    Raises:
        DataError: an action of features.actions is not mapped, or a mapped one is not in features.actions.
    """
    columns = mapping.columns
    table = _action_table(mapping)
    _same_actions(table.names, features.actions, _actions_key(mapping))
    layout = LogLayout(
        user_id=columns.user_id,
        item_id=columns.item_id,
        timestamp=columns.timestamp,
        timestamp_unit=columns.timestamp_unit,
        decimals=True,
        watch_ms=columns.watch_ms,
        watch_percent=columns.watch_percent,
        duration_ms=columns.duration_ms,
        duration_s=columns.duration_s,
        value=columns.value,
        surface=columns.surface,
    )
    return with_actions(layout, table, features.actions)


def _action_table(mapping: TabularMapping) -> ActionTable:
    return ActionTable(
        flags=mapping.action_columns,
        type_column=mapping.action_column,
        types=mapping.action_values,
        ranges={
            name: NumberRange(
                told.column,
                -math.inf if told.min is None else told.min,
                math.inf if told.max is None else told.max,
            )
            for name, told in mapping.action_ranges.items()
        },
    )


def _actions_key(mapping: TabularMapping) -> str:
    """The setting that maps actions, for messages."""
    if mapping.action_columns:
        return "data.tabular.action_columns"
    return "data.tabular.action_values" if mapping.action_column else "data.tabular.action_ranges"


def _same_actions(mapped: tuple[str, ...], actions: tuple[str, ...], key: str) -> None:
    unknown = [name for name in mapped if name not in actions]
    if unknown:
        raise DataError(f"{key}: '{unknown[0]}' is not in features.actions")
    missing = [name for name in actions if name not in mapped]
    if missing:
        raise DataError(f"{key}: nothing is mapped to '{missing[0]}' of features.actions; map it or remove it there")


def _side_table(root: Path, config: SideTableConfig | None, categories: tuple[str, ...], *, key: str) -> SideTable:
    kind = key.removesuffix("_id")
    known = {} if config is None else config.features
    for name in categories:
        if name not in known:
            setting = f"data.tabular.{kind}s.features"
            raise DataError(f"features.{kind}_categories: '{name}' is not in {setting}; map it or remove it")
    files = () if config is None else (_open(root, root / config.path, 0, _side_form(config.path)),)
    table = SideTable(
        key="user_id" if kind == "user" else "item_id",
        key_column=key if config is None else config.key,
        categories=tuple(SideColumn(name, known[name]) for name in categories),
        files=files,
    )
    for file in files:
        require_columns(file, table.columns, f"data.tabular.{kind}s maps it")
    return table


def _find(data: DataConfig, pattern: str, excluded: set[Path]) -> tuple[RawFile, ...]:
    root = data.path
    paths = [
        path
        for path in root.glob(pattern)
        if path.is_file() and not path.name.startswith(".") and path.resolve() not in excluded
    ]
    if not paths:
        raise DataError(f"{root}: no file matches data.tabular.pattern '{pattern}'")
    expected = {f".{data.source}", Path(pattern).suffix}
    wrong = [path for path in sorted(paths) if path.suffix not in expected]
    if wrong:
        raise DataError(f"{wrong[0]}: data.tabular.pattern '{pattern}' matches it, but data.source is {data.source}")
    paths.sort(key=lambda path: path.relative_to(root).as_posix())
    form = _form(data)
    return tuple(_open(root, path, rank, form) for rank, path in enumerate(paths))


def _open(root: Path, path: Path, rank: int, form: FileForm) -> RawFile:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    if not path.is_file():
        raise DataError(f"{path}: no such file (data.tabular)")
    return open_file(path, name, rank, form)


def _form(data: DataConfig) -> FileForm:
    assert data.source in ("csv", "jsonl", "parquet")
    assert data.tabular is not None
    mapping = data.tabular
    return FileForm(
        data.source,
        separator=mapping.separator,
        header=mapping.header,
        encoding=mapping.encoding,
        records=mapping.records,
    )


def _side_form(path: Path) -> FileForm:
    """A side table has a header, and its name tells the kind."""
    kinds: dict[str, Literal["csv", "jsonl", "parquet"]] = {".parquet": "parquet", ".jsonl": "jsonl"}
    return FileForm(kinds.get(path.suffix, "csv"))
