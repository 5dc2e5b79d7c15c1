"""Parquet and CSV logs of any shape, through the column mapping data.tabular."""

from __future__ import annotations

from pathlib import Path

from features.config import DataConfig, FeaturesConfig, TabularMapping
from features.config import SideTable as SideTableConfig
from features.errors import DataError
from pipelines.sources.csv_text import open_csv
from pipelines.sources.parquet_rows import check_types, open_parquet
from pipelines.sources.raw import (
    EventTypes,
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
        if file.is_parquet:
            check_types(file, layout)
    return RawLogs(files, layout, TimeRange.of(data), users, items)


def tabular_layout(mapping: TabularMapping, features: FeaturesConfig) -> LogLayout:
    """The mapping with its actions as bits.

    Raises:
        DataError: an action of features.actions is not mapped, or a mapped one is not in features.actions.
    """
    columns = mapping.columns
    bits = {name: bit for bit, name in enumerate(features.actions)}
    by_column = bool(mapping.action_columns)
    mapped = list(mapping.action_columns) if by_column else [name for name in mapping.action_values.values() if name]
    key = "data.tabular.action_columns" if by_column else "data.tabular.action_values"
    _same_actions(mapped, features.actions, key)
    return LogLayout(
        user_id=columns.user_id,
        item_id=columns.item_id,
        timestamp=columns.timestamp,
        timestamp_unit=columns.timestamp_unit,
        decimals=True,
        flags=tuple((column, bits[name]) for name, column in mapping.action_columns.items()),
        event_types=None if by_column else _event_types(mapping, bits),
        watch_ms=columns.watch_ms,
        duration_ms=columns.duration_ms,
        value=columns.value,
        surface=columns.surface,
    )


def _event_types(mapping: TabularMapping, bits: dict[str, int]) -> EventTypes:
    """The mask of each value; a value mapped to an empty name is an impression without an action."""
    assert mapping.action_column is not None
    masks = {value: 1 << bits[name] if name else 0 for value, name in mapping.action_values.items()}
    return EventTypes(mapping.action_column, masks)


def _same_actions(mapped: list[str], actions: tuple[str, ...], key: str) -> None:
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
    files = () if config is None else (_open(root, root / config.path, 0),)
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
    wrong = [path for path in sorted(paths) if path.suffix != f".{data.source}"]
    if wrong:
        raise DataError(f"{wrong[0]}: data.tabular.pattern '{pattern}' matches it, but data.source is {data.source}")
    paths.sort(key=lambda path: path.relative_to(root).as_posix())
    return tuple(_open(root, path, rank) for rank, path in enumerate(paths))


def _open(root: Path, path: Path, rank: int) -> RawFile:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
    if not path.is_file():
        raise DataError(f"{path}: no such file (data.tabular)")
    return (open_parquet if path.suffix == ".parquet" else open_csv)(path, name, rank)
