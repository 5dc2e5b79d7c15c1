"""The published datasets that `data.source` names, each as a table of its files, columns, actions and features.

KuaiRand   Rows of the random logs (is_rand = 1) show videos that no recommender chose: surfaces of their own, 100 and
           on. The files video_features_statistic* are not read: they average over the whole month, so they would tell
           a model what happened after an event. date and hourmin are not read either: only time_ms is right.
MovieLens  A rating is a `value`; which ratings are a like is a threshold. 1M separates by `::` and is in Latin-1.
OTTO       A JSON line is a session of many events; only interactions are logged, no exposures.
Taobao     No header, seconds, no exposures; rows outside the nine days are broken. The category stands in each row.
Yambda     Seconds from an unknown origin, so that only differences mean something. The origin here, 2000-01-01 01:46:40
           UTC, makes UTC days those of the official split, which count backwards from second 26,000,000.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping

from pipelines.sources.actions import ActionTable, NumberRange
from pipelines.sources.published import Dataset, SideFiles, Window
from pipelines.sources.raw import FileForm, LogLayout, SideColumn

_CSV = FileForm("csv")


def _same_names(*names: str) -> dict[str, SideColumn]:
    return {name: SideColumn(name, name) for name in names}


KUAIRAND_ACTIONS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
    "is_profile_enter",
)

_KUAIRAND_USERS = _same_names(
    "user_active_degree",
    "is_lowactive_period",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num",
    "follow_user_num_range",
    "fans_user_num",
    "fans_user_num_range",
    "friend_user_num",
    "friend_user_num_range",
    "register_days",
    "register_days_range",
    *(f"onehot_feat{number}" for number in range(18)),
)

_KUAIRAND_VIDEOS = {
    "author": SideColumn("author", "author_id"),
    "upload_type": SideColumn("upload_type", "upload_type"),
    "video_type": SideColumn("video_type", "video_type"),
    "music": SideColumn("music", "music_id"),
    "music_type": SideColumn("music_type", "music_type"),
    "tag": SideColumn("tag", "tag", part=0),
    "tag_2": SideColumn("tag_2", "tag", part=1),
}

_KUAIRAND = Dataset(
    logs={"log_standard_*.csv": _CSV, "log_random_*.csv": _CSV},
    layout=LogLayout(
        user_id="user_id",
        item_id="video_id",
        timestamp="time_ms",
        timestamp_unit="ms",
        watch_ms="play_time_ms",
        duration_ms="duration_ms",
        surface="tab",
        random_flag="is_rand",
    ),
    actions=ActionTable(flags={name: name for name in KUAIRAND_ACTIONS}),
    users=SideFiles("user_id", _KUAIRAND_USERS, {"user_features*.csv": _CSV}),
    items=SideFiles("video_id", _KUAIRAND_VIDEOS, {"video_features_basic*.csv": _CSV}),
)

_GENRES = {
    name: SideColumn(name, "genres", part=part, separator="|")
    for part, name in enumerate(("genre", "genre_2", "genre_3"))
}


def _ratings(user_id: str, item_id: str) -> LogLayout:
    return LogLayout(user_id, item_id, "timestamp", "s", value="rating")


_RATING_ACTIONS = ActionTable(
    ranges={
        "is_liked": NumberRange("rating", minimum=4),
        "is_loved": NumberRange("rating", minimum=5),
        "is_disliked": NumberRange("rating", maximum=2),
    }
)


def _dat(*header: str) -> FileForm:
    return FileForm("csv", separator="::", header=header, encoding="latin-1")


_MOVIELENS_CSV = Dataset(
    logs={"ratings.csv": _CSV},
    layout=_ratings("userId", "movieId"),
    actions=_RATING_ACTIONS,
    items=SideFiles("movieId", _GENRES, {"movies.csv": _CSV}),
)

_MOVIELENS_DAT = Dataset(
    logs={"ratings.dat": _dat("user_id", "movie_id", "rating", "timestamp")},
    layout=_ratings("user_id", "movie_id"),
    actions=_RATING_ACTIONS,
    users=SideFiles(
        "user_id",
        _same_names("gender", "age", "occupation", "zip_code"),
        {"users.dat": _dat("user_id", "gender", "age", "occupation", "zip_code")},
    ),
    items=SideFiles("movie_id", _GENRES, {"movies.dat": _dat("movie_id", "title", "genres")}),
)

_SESSIONS = FileForm("jsonl", records="events")

_OTTO = Dataset(
    logs=dict.fromkeys(("train.jsonl", "test.jsonl", "otto-recsys-train.jsonl", "otto-recsys-test.jsonl"), _SESSIONS),
    layout=LogLayout("session", "events.aid", "events.ts", "ms"),
    actions=ActionTable(
        type_column="events.type", types={"clicks": "is_click", "carts": "is_cart", "orders": "is_order"}
    ),
)

_TAOBAO = Dataset(
    logs={"UserBehavior.csv": FileForm("csv", header=("user_id", "item_id", "category_id", "behavior", "timestamp"))},
    layout=LogLayout("user_id", "item_id", "timestamp", "s"),
    actions=ActionTable(
        type_column="behavior", types={"pv": "is_click", "fav": "is_favorite", "cart": "is_cart", "buy": "is_buy"}
    ),
    items=SideFiles("item_id", {"category": SideColumn("category", "category_id")}),
    window=Window(datetime.date(2017, 11, 25), datetime.date(2017, 12, 3), "Asia/Shanghai"),
)

# 26,000,000 s, the end of the data, is 300 days and 80,000 s: the first day begins 6,400 s before its own midnight.
_YAMBDA_ORIGIN = datetime.datetime(2000, 1, 1, 1, 46, 40, tzinfo=datetime.UTC)
_YAMBDA_TYPES = {
    "listen": "",
    "like": "is_like",
    "dislike": "is_dislike",
    "unlike": "is_unlike",
    "undislike": "is_undislike",
}


def _yambda(logs: Mapping[str, FileForm]) -> Dataset:
    return Dataset(
        logs=logs,
        layout=LogLayout(
            user_id="uid",
            item_id="item_id",
            timestamp="timestamp",
            timestamp_unit="s",
            timestamp_origin_ms=int(_YAMBDA_ORIGIN.timestamp() * 1000),
            decimals=True,
            watch_percent="played_ratio_pct",
            duration_s="track_length_seconds",
            surface="is_organic",
        ),
        actions=ActionTable(
            type_column="event_type",
            types=_YAMBDA_TYPES,
            ranges={"is_listened": NumberRange("played_ratio_pct", minimum=50)},
        ),
    )


def _yambda_files() -> dict[str, FileForm]:
    unheard = (("played_ratio_pct", None), ("track_length_seconds", None))
    forms = {"listens.parquet": FileForm("parquet", constants=(("event_type", "listen"),))}
    for kind in ("like", "dislike", "unlike", "undislike"):
        forms[f"{kind}s.parquet"] = FileForm("parquet", constants=(("event_type", kind), *unheard))
    return forms


DATASETS: dict[str, tuple[str, tuple[Dataset, ...]]] = {
    "kuairand": ("KuaiRand", (_KUAIRAND,)),
    "movielens": ("MovieLens", (_MOVIELENS_CSV, _MOVIELENS_DAT)),
    "otto": ("OTTO", (_OTTO,)),
    "taobao": ("Taobao UserBehavior", (_TAOBAO,)),
    "yambda": ("Yambda", (_yambda({"multi_event.parquet": FileForm("parquet")}), _yambda(_yambda_files()))),
}
