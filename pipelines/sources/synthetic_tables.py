"""The synthetic world in KuaiRand's columns: the log, the users and the videos."""

from __future__ import annotations

import datetime

import numpy as np
import polars as pl

from pipelines.sources.synthetic_behaviour import Impressions, draw_responses
from pipelines.sources.synthetic_schedule import DAY_MS, HOUR_MS, TABS
from pipelines.sources.synthetic_world import Catalogue, SyntheticSettings, Users

# KuaiRand's two files meet here.
SECOND_FILE_DAY = datetime.date(2022, 4, 22)
MAX_FIRST_FILE_DAYS = 14
BEIJING_OFFSET_MS = 8 * HOUR_MS
LOG_COLUMNS = (
    *("user_id", "video_id", "date", "hourmin", "time_ms", "is_click", "is_like", "is_follow", "is_comment"),
    *("is_forward", "is_hate", "long_view", "play_time_ms", "duration_ms", "profile_stay_time", "comment_stay_time"),
    *("is_profile_enter", "is_rand", "tab"),
)
ACTIVE_DEGREES = ("low_active", "middle_active", "high_active", "full_active")
FOLLOW_RANGES = ("0", "(0,10]", "(10,50]", "(50,100]", "(100,150]", "(150,250]", "(250,500]", "500+")
FANS_RANGES = ("0", "[1,10)", "[10,100)", "[100,1k)", "[1k,5k)", "[5k,1w)", "[1w,10w)", "[10w,100w)", "[100w,1000w)")
FRIEND_RANGES = ("0", "[1,5)", "[5,30)", "[30,60)", "[60,120)", "[120,250)", "250+")
REGISTER_RANGES = ("8-14", "15-30", "31-60", "61-90", "91-180", "181-365", "366-730", "730+")
ONEHOT_SIZES = (2, 7, 50, 1471, 15, 34, 3, 118, 454, 7, 5, 5, 2, 2, 2, 2, 2, 2)
UPLOAD_TYPES = np.array(["LongImport", "Web", "ShortImport", "Kmovie", "LongPicture", "ShareFromOtherApp"])
UPLOAD_TYPE_SHARES = np.array([0.4, 0.32, 0.13, 0.12, 0.02, 0.01])
UNKNOWN_DURATION_SHARE = 0.016
UNKNOWN_TAG_SHARE = 0.013


def num_first_file_days(num_days: int) -> int:
    """How many of the days are in the first log file."""
    return min(MAX_FIRST_FILE_DAYS, num_days // 2)


def first_day(num_days: int) -> datetime.date:
    """First local day of the logs."""
    return SECOND_FILE_DAY - datetime.timedelta(days=num_first_file_days(num_days))


def _first_midnight_ms(num_days: int) -> int:
    days = (first_day(num_days) - datetime.date(1970, 1, 1)).days
    return days * DAY_MS - BEIJING_OFFSET_MS


def unknown_duration(catalogue: Catalogue, seed: int) -> np.ndarray:
    """(N,) items whose duration the logs do not tell."""
    return np.random.default_rng([seed, 3]).random(len(catalogue.video_id_N)) < UNKNOWN_DURATION_SHARE


def log_table(
    impressions: Impressions,
    users: Users,
    catalogue: Catalogue,
    *,
    settings: SyntheticSettings,
    rng: np.random.Generator,
) -> pl.DataFrame:
    """Draws what the users do and writes the impressions down in KuaiRand's log columns, by user and time."""
    item = impressions.item_E
    actions = draw_responses(impressions, users, catalogue, rng)
    local_ms = impressions.schedule.page_ms_P[impressions.schedule.page_E]
    first = first_day(settings.num_days)
    dates = np.array(
        [int(f"{first + datetime.timedelta(days=day):%Y%m%d}") for day in range(settings.num_days)], np.int64
    )
    unknown = unknown_duration(catalogue, settings.seed)[item]
    profile_ms = rng.lognormal(np.log(8_000), 0.8, len(item)).astype(np.int64)
    comment_ms = rng.lognormal(np.log(6_000), 0.8, len(item)).astype(np.int64)
    reads_comments = actions["is_comment"] | (actions["is_click"] & (rng.random(len(item)) < 0.06))
    columns = {
        "user_id": users.user_id_U[impressions.user_E],
        "video_id": catalogue.video_id_N[item],
        "date": dates[local_ms // DAY_MS],
        "hourmin": local_ms % DAY_MS // HOUR_MS * 100,
        "time_ms": local_ms + _first_midnight_ms(settings.num_days),
        "play_time_ms": _play_time_ms(impressions, actions, catalogue.duration_ms_N[item], rng),
        "duration_ms": np.where(unknown, 0, catalogue.duration_ms_N[item]),
        "profile_stay_time": np.where(actions["is_profile_enter"], profile_ms, 0),
        "comment_stay_time": np.where(reads_comments, comment_ms, 0),
        "is_rand": np.zeros(len(item), np.int64),
        "tab": TABS[impressions.tab_E],
        **{name: drawn.astype(np.int64) for name, drawn in actions.items()},
    }
    return pl.DataFrame({name: columns[name] for name in LOG_COLUMNS})


def _play_time_ms(
    impressions: Impressions, actions: dict[str, np.ndarray], duration_E: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Watch time by KuaiRand's rules: a click plays over 7 s or to the end, a long view 18 s or to the end."""
    size = len(duration_E)
    # The better the match, the closer to the upper end.
    uniform = rng.random(size) ** np.exp(-0.4 * impressions.match.affinity_E)
    glance = uniform * np.minimum(duration_E - 1, 7_000)
    # Most unclicked covers of the two-column tab never start to play.
    glance = np.where((TABS[impressions.tab_E] == 0) & (rng.random(size) < 0.92), 0, glance)
    view = 7_001 + uniform * (np.minimum(duration_E, 18_000) - 7_002)
    again = duration_E * (1 + 0.4 * rng.exponential(1.0, size))
    partial = 18_000 + uniform * (duration_E - 18_000)
    full = np.where((duration_E <= 18_000) | (rng.random(size) < 0.3), again, partial)
    play = np.where(actions["long_view"], full, np.where(actions["is_click"], view, glance))
    return np.where(actions["long_view"], np.ceil(play), np.floor(play)).astype(np.int64)


def _labelled(values: np.ndarray, lower_bounds: list[int], labels: tuple[str, ...]) -> np.ndarray:
    """Label of the range that each value lies in; the first range has no lower bound."""
    return np.array(labels)[np.digitize(values, lower_bounds)]


def user_table(users: Users, settings: SyntheticSettings) -> pl.DataFrame:
    """user_features: 31 columns of which only one tells a little about the user's interests."""
    rng = np.random.default_rng([settings.seed, 4, int(users.user_id_U[0])])
    size = len(users.user_id_U)
    average = settings.num_events / settings.users
    activity = users.num_events_U * rng.lognormal(0, 0.4, size) / average
    social = np.exp(rng.normal(0, 1, size) + 0.3 * np.log1p(users.num_events_U / average))
    follow = (90 * social * rng.lognormal(0, 0.8, size)).astype(np.int64).clip(0, 5_003)
    fans = (60 * social * rng.lognormal(0, 1.6, size) - 2).astype(np.int64).clip(0, 2_000_000)
    friends = (18 * social * rng.lognormal(0, 1.2, size) - 1).astype(np.int64).clip(0, 4_995)
    registered = (1_200 * rng.lognormal(0, 0.9, size)).astype(np.int64).clip(14, 3_624)
    onehot = [rng.integers(0, cardinality, size) for cardinality in ONEHOT_SIZES]
    tells = rng.random(size) < 0.25
    onehot[2] = np.where(tells, users.interests_U3[:, 0] * 2 % ONEHOT_SIZES[2], onehot[2])
    missing_4, missing_12 = rng.random(size) < 0.03, rng.random(size) < 0.026
    columns: dict[str, np.ndarray | pl.Series] = {
        "user_id": users.user_id_U,
        "user_active_degree": _labelled((activity * 1000).astype(np.int64), [60, 150, 400], ACTIVE_DEGREES),
        "is_lowactive_period": np.zeros(size, np.int64),
        "is_live_streamer": np.where(rng.random(size) < 0.2, 1, -124),
        "is_video_author": (rng.random(size) < 0.8).astype(np.int64),
        "follow_user_num": follow,
        "follow_user_num_range": _labelled(follow, [1, 11, 51, 101, 151, 251, 501], FOLLOW_RANGES),
        "fans_user_num": fans,
        "fans_user_num_range": _labelled(fans, [1, 10, 100, 1_000, 5_000, 10_000, 100_000, 1_000_000], FANS_RANGES),
        "friend_user_num": friends,
        "friend_user_num_range": _labelled(friends, [1, 5, 30, 60, 120, 250], FRIEND_RANGES),
        "register_days": registered,
        "register_days_range": _labelled(registered, [15, 31, 61, 91, 181, 366, 731], REGISTER_RANGES),
    }
    for number, codes in enumerate(onehot):
        if number == 4:
            columns["onehot_feat4"] = _with_nulls(codes, missing_4)
        elif number >= 12:
            columns[f"onehot_feat{number}"] = _with_nulls(codes, missing_12)
        else:
            columns[f"onehot_feat{number}"] = codes
    return pl.DataFrame(columns)


def _with_nulls(values: np.ndarray, missing: np.ndarray) -> pl.Series:
    """A float column as KuaiRand writes the columns that have empty fields."""
    return pl.Series(np.where(missing, np.nan, values.astype(float))).fill_nan(None)


def video_table(catalogue: Catalogue, settings: SyntheticSettings) -> pl.DataFrame:
    """video_features_basic: 12 columns; the first tag is the item's topic."""
    rng = np.random.default_rng([settings.seed, 5])
    size = len(catalogue.video_id_N)
    author_id = rng.permutation(len(catalogue.author_topic_A) * 7)[: len(catalogue.author_topic_A)]
    first = first_day(settings.num_days)
    dates = [str(first + datetime.timedelta(days=int(day))) for day in catalogue.upload_day_N]
    tags = [
        f"{topic + 1}" if second < 0 else f"{topic + 1},{second + 1}"
        for topic, second in zip(catalogue.topic_N.tolist(), catalogue.second_topic_N.tolist(), strict=True)
    ]
    no_tag = rng.random(size) < UNKNOWN_TAG_SHARE
    upright = rng.random(size) < 0.72
    return pl.DataFrame(
        {
            "video_id": catalogue.video_id_N,
            "author_id": author_id[catalogue.author_N],
            "video_type": np.where(rng.random(size) < 0.01, "AD", "NORMAL"),
            "upload_dt": dates,
            "upload_type": rng.choice(UPLOAD_TYPES, size, p=UPLOAD_TYPE_SHARES),
            "visible_status": np.zeros(size),
            "video_duration": _with_nulls(catalogue.duration_ms_N, unknown_duration(catalogue, settings.seed)),
            "server_width": np.where(upright, 720.0, 1280.0),
            "server_height": np.where(upright, 1280.0, 720.0),
            "music_id": rng.integers(8_000_000_000, 9_200_000_000, size),
            "music_type": _with_nulls(rng.choice([4, 9], size, p=[0.1, 0.9]), rng.random(size) < 0.027),
            "tag": pl.Series(tags).set(pl.Series(no_tag), None),
        }
    ).sort("video_id")
