"""KuaiRand's folders: names, columns, random exposures, side tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from pipelines.sources.plan import plan_logs, plan_units
from pipelines.sources.raw import RANK_SHIFT, RawLogs, SideTable, TimeRange
from pipelines.sources.read import read_unit
from pipelines.sources.side_tables import read_side_table

ITEM_CATEGORIES = ("author", "upload_type", "video_type", "music", "music_type", "tag", "tag_2")
USER_COLUMNS = (
    "user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,follow_user_num,follow_user_num_range,"
    "fans_user_num,fans_user_num_range,friend_user_num,friend_user_num_range,register_days,register_days_range,"
    + ",".join(f"onehot_feat{number}" for number in range(18))
).split(",")


def plan(params: Path) -> RawLogs:
    return plan_logs(DataConfig.load(params), FeaturesConfig.load(params))


def read_all(params: Path) -> pl.DataFrame:
    logs, times = plan(params), TimeRange.of(DataConfig.load(params))
    return pl.concat(
        read_unit(unit, logs.layout, times).events for file in logs.files for unit in plan_units(file, 1000)
    )


def side_rows(table: SideTable) -> pl.DataFrame:
    return pl.concat(rows.events for file in table.files for rows in read_side_table(table, file))


@pytest.mark.parametrize(
    "names",
    [
        ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv"),
        ("log_random_4_22_to_5_08_1k.csv", "log_standard_4_08_to_4_21_1k.csv"),
        ("log_standard_4_08_to_4_21_27k_part1.csv", "log_standard_4_08_to_4_21_27k_part2.csv"),
        ("log_random_4_22_to_5_08_1k.users1-2.csv", "log_standard_4_22_to_5_08_pure.head1000.csv"),
    ],
)
@pytest.mark.parametrize("below", [".", "data"])
def test_published_file_names_are_found_and_ranked(
    tmp_path: Path,
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    names: tuple[str, ...],
    below: str,
) -> None:
    folder = write_log([log_line(video_id=1)], names[1])
    write_log([log_line(video_id=0)], names[0])
    (folder / "video_features_statistic_pure.csv").write_text("")
    (folder / "README.md").write_text("")
    if below != ".":
        folder.rename(tmp_path / below)
        folder.mkdir()
        (tmp_path / below).rename(folder / below)
    params = write_params(folder)
    assert [file.name for file in plan(params).files] == [(Path(below) / name).as_posix() for name in names]
    events = read_all(params)
    assert events.select("item_id", "source_order").rows() == [(0, 0), (1, 1 << RANK_SHIFT)]


def test_actions_are_the_columns_in_the_order_of_the_configuration(
    write_log: Callable[..., Path], write_params: Callable[..., Path], log_line: Callable[..., str]
) -> None:
    folder = write_log([log_line(is_like=1), log_line(long_view=1, is_like=1), log_line(is_hate=1)])
    params = write_params(folder, features={"actions": ["long_view", "is_like"], "streams": {"consumption": "all"}})
    assert read_all(params)["action_mask"].to_list() == [0b10, 0b11, 0]


def test_random_exposures_are_a_surface_of_their_own(
    write_log: Callable[..., Path], write_params: Callable[..., Path], log_line: Callable[..., str]
) -> None:
    folder = write_log([log_line(tab=4, is_rand=1), log_line(tab=4)], "log_random_4_22_to_5_08_pure.csv")
    assert read_all(write_params(folder))["surface"].to_list() == [104, 4]


def test_side_tables_become_normalised_text(
    write_log: Callable[..., Path], write_params: Callable[..., Path], log_line: Callable[..., str]
) -> None:
    folder = write_log([log_line()])
    values = {"user_active_degree": "full_active", "follow_user_num_range": '"(250,500]"', "onehot_feat4": "1.0"}
    (folder / "user_features_pure.csv").write_text(
        "\n".join(
            [
                ",".join(["user_id", *USER_COLUMNS]),
                ",".join(["7", *(values.get(name, "0") for name in USER_COLUMNS)]),
                ",".join(["8", *("-124" if name == "is_live_streamer" else "" for name in USER_COLUMNS)]),
            ]
        )
    )
    (folder / "video_features_basic_pure.csv").write_text(
        "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,"
        'music_id,music_type,tag\n3,11,NORMAL,2022-04-10,Web,0.0,5.0,7.0,9.0,12,9.0,"39,68"\n4,12,AD,,,,,,,,,\n'
        "5,12,AD,,,,,,,,,8\n"
    )
    params = write_params(folder, features={"user_categories": USER_COLUMNS, "item_categories": list(ITEM_CATEGORIES)})
    logs = plan(params)
    users = side_rows(logs.users)
    assert users.columns == ["user_id", *USER_COLUMNS]
    wanted = ["user_id", "user_active_degree", "follow_user_num_range", "onehot_feat4", "is_live_streamer"]
    assert users.select(wanted).rows() == [(7, "full_active", "(250,500]", "1", "0"), (8, None, None, None, "-124")]
    items = side_rows(logs.items)
    assert items.columns == ["item_id", *ITEM_CATEGORIES]
    assert items.rows() == [
        (3, "11", "Web", "NORMAL", "12", "9", "39", "68"),
        (4, "12", None, "AD", None, None, None, None),
        (5, "12", None, "AD", None, None, "8", None),
    ]


def test_side_tables_that_nothing_needs_may_be_missing(
    write_log: Callable[..., Path], write_params: Callable[..., Path], log_line: Callable[..., str]
) -> None:
    logs = plan(write_params(write_log([log_line()])))
    assert logs.users.files == logs.items.files == ()


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (
            {"user_categories": ["user_active_degree"]},
            "raw: no user_features*.csv, which features.user_categories needs for 'user_active_degree'",
        ),
        (
            {"item_categories": ["tag"]},
            "video_features_basic_pure.csv: column 'tag' is missing (features.item_categories); found: video_id",
        ),
        (
            {"item_categories": ["genre"]},
            "features.item_categories: 'genre' is unknown, the dataset has author, upload_type, video_type, music",
        ),
        (
            {"actions": ["is_shared"], "streams": {"consumption": "all"}},
            "features.actions: 'is_shared' is unknown, KuaiRand has is_click, is_like, is_follow, is_comment,",
        ),
    ],
)
def test_what_the_features_need_must_be_there(
    write_log: Callable[..., Path],
    write_params: Callable[..., Path],
    log_line: Callable[..., str],
    features: dict[str, object],
    message: str,
) -> None:
    folder = write_log([log_line()])
    (folder / "video_features_basic_pure.csv").write_text("video_id,author_id\n")
    with pytest.raises(DataError) as error:
        plan(write_params(folder, features=features))
    assert message in str(error.value)


def test_logs_in_both_places_are_refused(
    write_log: Callable[..., Path], write_params: Callable[..., Path], log_line: Callable[..., str]
) -> None:
    folder = write_log([log_line()])
    (folder / "data").mkdir()
    (folder / "data" / "log_random_4_22_to_5_08_pure.csv").write_text("user_id\n")
    with pytest.raises(DataError, match="logs both in it and in its folder 'data', keep one of them"):
        plan(write_params(folder))


def test_the_real_sample(real_data: Path, write_params: Callable[..., Path]) -> None:
    params = write_params(
        real_data / "kuairand_pure_sample",
        features={"user_categories": USER_COLUMNS, "item_categories": list(ITEM_CATEGORIES)},
    )
    logs = plan(params)
    events = read_all(params)
    assert [file.name for file in logs.files] == [
        "log_random_4_22_to_5_08_1k.users1-2.csv",
        "log_standard_4_08_to_4_21_pure.head1000.csv",
        "log_standard_4_22_to_5_08_pure.head1000.csv",
        "log_standard_4_25_to_5_08_pure_u40.csv",
    ]
    ranks = events["source_order"].to_numpy() >> RANK_SHIFT
    assert pl.Series(ranks).value_counts(sort=True).rows() == [(3, 17_049), (1, 1000), (2, 1000), (0, 70)]
    random = events.filter(pl.Series(ranks == 0))
    assert random["surface"].min() >= 101
    assert events.filter(pl.Series(ranks > 0))["surface"].max() < 100
    u40 = events.filter(pl.Series(ranks == 3))["action_mask"].to_numpy()
    assert [int((u40 >> bit & 1).sum()) for bit in range(8)] == [6134, 174, 13, 38, 8, 34, 3835, 188]
    users, items = side_rows(logs.users), side_rows(logs.items)
    assert (len(users), len(items)) == (486, 4025)
    assert users["onehot_feat4"].drop_nulls().str.contains(".", literal=True).sum() == 0
    assert items["tag"].drop_nulls().str.contains(",").sum() == 0
