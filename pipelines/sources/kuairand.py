"""KuaiRand's folders as they are published: Pure, 1K and 27K, standard and random-exposure logs.

Rows of the random logs (is_rand = 1) show videos that no recommender chose, so they are a surface of their own:
100 + tab. The files video_features_statistic* are not read: they average over the whole month, so they would tell a
model what happened after an event.
"""

from __future__ import annotations

from pathlib import Path

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from pipelines.sources.csv_text import open_csv
from pipelines.sources.raw import (
    LogLayout,
    RawFile,
    RawLogs,
    SideColumn,
    SideTable,
    TimeRange,
    check_folder,
    require_columns,
)

LOG_PATTERNS = ("log_standard_*.csv", "log_random_*.csv")
USER_PATTERN = "user_features*.csv"
VIDEO_PATTERN = "video_features_basic*.csv"

ITEM_CATEGORIES = {
    "author": SideColumn("author", "author_id"),
    "upload_type": SideColumn("upload_type", "upload_type"),
    "video_type": SideColumn("video_type", "video_type"),
    "music": SideColumn("music", "music_id"),
    "music_type": SideColumn("music_type", "music_type"),
    "tag": SideColumn("tag", "tag", part=0),
    "tag_2": SideColumn("tag_2", "tag", part=1),
}


def plan_kuairand(data: DataConfig, features: FeaturesConfig) -> RawLogs:
    """Finds a KuaiRand log in data.path or its folder `data`; any words may follow the files' usual names.

    Raises:
        DataError: no log is there, or a file lacks a column that the configuration needs.
    """
    check_folder(data.path)
    folder = _log_folder(data.path)
    layout = kuairand_layout(features)
    files = _open_all(data.path, folder, LOG_PATTERNS)
    for file in files:
        require_columns(file, layout.columns, "a KuaiRand log's columns and features.actions")
    users = SideTable(
        key="user_id",
        key_column="user_id",
        categories=tuple(SideColumn(name, name) for name in features.user_categories),
        files=_open_all(data.path, folder, (USER_PATTERN,)),
    )
    items = SideTable(
        key="item_id",
        key_column="video_id",
        categories=tuple(_item_category(name) for name in features.item_categories),
        files=_open_all(data.path, folder, (VIDEO_PATTERN,)),
    )
    _require_side_table(users, folder, USER_PATTERN, "features.user_categories")
    _require_side_table(items, folder, VIDEO_PATTERN, "features.item_categories")
    return RawLogs(files, layout, TimeRange.of(data), users, items)


def kuairand_layout(features: FeaturesConfig) -> LogLayout:
    """The columns of KuaiRand's logs; the names of the actions are columns too."""
    return LogLayout(
        user_id="user_id",
        item_id="video_id",
        timestamp="time_ms",
        timestamp_unit="ms",
        decimals=False,
        flags=tuple((name, bit) for bit, name in enumerate(features.actions)),
        watch_ms="play_time_ms",
        duration_ms="duration_ms",
        surface="tab",
        random_flag="is_rand",
    )


def _log_folder(root: Path) -> Path:
    found = [folder for folder in (root, root / "data") if any(_matches(folder, LOG_PATTERNS))]
    if not found:
        raise DataError(f"{root}: no {' or '.join(LOG_PATTERNS)} in it or in its folder 'data' (data.path)")
    if len(found) > 1:
        raise DataError(f"{root}: logs both in it and in its folder 'data', keep one of them")
    return found[0]


def _matches(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())


def _open_all(root: Path, folder: Path, patterns: tuple[str, ...]) -> tuple[RawFile, ...]:
    paths = _matches(folder, patterns)
    return tuple(open_csv(path, path.relative_to(root).as_posix(), rank) for rank, path in enumerate(paths))


def _item_category(name: str) -> SideColumn:
    if name not in ITEM_CATEGORIES:
        raise DataError(f"features.item_categories: '{name}' is unknown, KuaiRand has {', '.join(ITEM_CATEGORIES)}")
    return ITEM_CATEGORIES[name]


def _require_side_table(table: SideTable, folder: Path, pattern: str, setting: str) -> None:
    if table.categories and not table.files:
        raise DataError(f"{folder}: no {pattern}, which {setting} needs for '{table.categories[0].name}'")
    for file in table.files:
        require_columns(file, table.columns, setting)
