"""The synthetic world: items with topics and authors, and users with interests.

Legend: N items, A authors, K topics, U users, D days, R responses (see synthetic_behaviour.RESPONSES).
Items are kept sorted by (topic, author), so that a topic or an author is a range of items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.errors import DataError

INTEREST_WEIGHTS = np.array([0.45, 0.33, 0.22])
INTEREST_AFFINITIES = np.array([2.2, 1.9, 1.6])
NUM_LIKED_AUTHORS = 3
# No user makes more than this share of the average, so that the day has room for everybody's sessions.
MAX_ACTIVITY_RATIO = 15.0


@dataclass(frozen=True)
class SyntheticSettings:
    """Size and seed of synthetic logs.

    Attributes:
        num_events: impressions in all.
        num_users, num_items: null derives them: 100 impressions a user, 50 an item.
        num_days: 2 to 31, around 22 April 2022, at which KuaiRand's two files meet.
        num_topics: what items are about and users are interested in.
        new_item_share: share of the items that are uploaded during the logged days.
        seed: equal settings and seed give the same bytes.
        dirty: adds broken, moved and repeated rows, see DirtyCounts.
    """

    num_events: int = 200_000
    num_users: int | None = None
    num_items: int | None = None
    num_days: int = 14
    num_topics: int = 16
    new_item_share: float = 0.25
    seed: int = 7
    dirty: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.num_days <= 31:
            raise DataError(f"synthetic logs: num_days is {self.num_days}, give 2 to 31")
        if self.num_events < 100 or self.users < 1 or self.items < 10 * self.num_topics or self.num_topics < 4:
            raise DataError(
                "synthetic logs: give at least 100 events, 1 user, 4 topics and 10 items per topic, not "
                f"{self.num_events}, {self.users}, {self.num_topics} and {self.items}"
            )
        if self.num_events > 40 * self.users * self.num_days:
            raise DataError("synthetic logs: more than 40 events a user and day, give more users or days")
        if not 0 <= self.new_item_share < 1:
            raise DataError(f"synthetic logs: new_item_share is {self.new_item_share}, give a share below 1")

    @property
    def users(self) -> int:
        """Number of users."""
        return self.num_users if self.num_users is not None else max(20, self.num_events // 100)

    @property
    def items(self) -> int:
        """Number of items."""
        return self.num_items if self.num_items is not None else max(20 * self.num_topics, self.num_events // 50)


@dataclass(frozen=True)
class Catalogue:
    """Everything about items.

    Attributes:
        video_id_N, author_N, topic_N, second_topic_N: ids; second_topic -1 = none.
        duration_ms_N: true duration.
        upload_day_N: day of the logs, negative before them.
        quality_NR: how the item moves the logit of each response.
        topic_offsets: (K + 1,), author_offsets: (A + 1,) ranges of items.
        author_topic_A, author_popularity_A: what an author is about and how much of the supply it makes.
        cumulative_DN1: per day, cumulative share of the supply before each item; items not yet uploaded have none.
    """

    video_id_N: np.ndarray
    author_N: np.ndarray
    topic_N: np.ndarray
    second_topic_N: np.ndarray
    duration_ms_N: np.ndarray
    upload_day_N: np.ndarray
    quality_NR: np.ndarray
    topic_offsets: np.ndarray
    author_offsets: np.ndarray
    author_topic_A: np.ndarray
    author_popularity_A: np.ndarray
    cumulative_DN1: np.ndarray

    def draw(self, day: np.ndarray, low: np.ndarray, high: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Draws an item in [low, high) by that day's supply; ranges without any give a near item."""
        item = np.empty(len(day), np.int64)
        for number, cumulative in enumerate(self.cumulative_DN1):
            here = np.flatnonzero(day == number)
            first, last = cumulative[low[here]], cumulative[high[here]]
            item[here] = np.searchsorted(cumulative, first + uniform[here] * (last - first), side="right") - 1
        return np.minimum(item, len(self.video_id_N) - 1)


@dataclass(frozen=True)
class Users:
    """A block of users.

    Attributes:
        user_id_U, num_events_U, join_day_U: ids, impressions, first day.
        interests_U3: topics of long-term interest, strongest first.
        affinity_UK: long-term affinity to each topic.
        liked_authors_U3: authors the user is fond of.
        bias_UR: how the user moves the logit of each response.
        phase_U: shift of the user's day in hours.
    """

    user_id_U: np.ndarray
    num_events_U: np.ndarray
    join_day_U: np.ndarray
    interests_U3: np.ndarray
    affinity_UK: np.ndarray
    liked_authors_U3: np.ndarray
    bias_UR: np.ndarray
    phase_U: np.ndarray


def offsets_of(sorted_codes: np.ndarray, size: int) -> np.ndarray:
    """(size + 1,) offsets of each code's run in a sorted column."""
    return np.searchsorted(sorted_codes, np.arange(size + 1))


def make_catalogue(settings: SyntheticSettings, item_sd_R: np.ndarray) -> Catalogue:
    """Draws the items; `item_sd_R` is the spread of their quality per response."""
    rng = np.random.default_rng([settings.seed, 0])
    num_items, num_topics = settings.items, settings.num_topics
    num_authors = max(num_topics, num_items // 5)
    topic_share = rng.dirichlet(np.full(num_topics, 4.0))
    author_topic = np.sort(
        np.r_[np.arange(num_topics), rng.choice(num_topics, num_authors - num_topics, p=topic_share)]
    )
    author_weight = rng.pareto(1.3, num_authors) + 0.2
    # Every author has an item; the rest go to authors by weight.
    author = np.sort(
        np.r_[
            np.arange(num_authors),
            rng.choice(num_authors, num_items - num_authors, p=author_weight / author_weight.sum()),
        ]
    )
    topic = author_topic[author]
    popularity = 1.0 / (rng.permutation(num_items) + 20.0) ** 0.9
    is_new = rng.random(num_items) < settings.new_item_share
    upload_day = np.where(is_new, rng.integers(0, settings.num_days, num_items), -rng.integers(1, 15, num_items))
    # The last item is an old one: a draw that finds nothing newer ends there.
    upload_day[-1] = -1
    duration_log = rng.uniform(np.log(9_000), np.log(75_000), num_topics)[topic] + rng.normal(0, 0.5, num_items)
    second = np.where(rng.random(num_items) < 0.2, rng.integers(0, num_topics, num_items), -1)
    author_quality = rng.normal(0, 0.7, (num_authors, len(item_sd_R)))
    quality = (author_quality[author] + rng.normal(0, 0.7, (num_items, len(item_sd_R)))) * item_sd_R
    return Catalogue(
        video_id_N=rng.permutation(num_items),
        author_N=author,
        topic_N=topic,
        second_topic_N=np.where(second == topic, -1, second),
        duration_ms_N=np.clip(np.exp(duration_log), 3_000, 600_000).astype(np.int64),
        upload_day_N=upload_day,
        quality_NR=quality.astype(np.float32),
        topic_offsets=offsets_of(topic, num_topics),
        author_offsets=offsets_of(author, num_authors),
        author_topic_A=author_topic,
        author_popularity_A=np.bincount(author, popularity, num_authors),
        cumulative_DN1=_cumulative_supply(popularity, upload_day, settings.num_days),
    )


def _cumulative_supply(popularity: np.ndarray, upload_day: np.ndarray, num_days: int) -> np.ndarray:
    """(D, N + 1) cumulative shares of the supply: nothing before its upload, then a few days of extra exposure."""
    age = np.arange(num_days)[:, None] - upload_day
    freshness = np.where(upload_day >= 0, 1.0 + 2.0 * np.exp(-np.maximum(age, 0) / 2.0), 1.0)
    supply = np.where(age >= 0, popularity * freshness, 0.0)
    cumulative = np.concatenate([np.zeros((num_days, 1)), np.cumsum(supply, axis=1)], axis=1)
    return cumulative / cumulative[:, -1:]


def events_per_user(settings: SyntheticSettings) -> np.ndarray:
    """(U,) heavy-tailed numbers of impressions that sum to num_events; the smallest are 0 to 2."""
    rng = np.random.default_rng([settings.seed, 1])
    weight = rng.lognormal(0.0, 1.05, settings.users)
    weight = np.minimum(weight / weight.mean(), MAX_ACTIVITY_RATIO)
    bounds = np.rint(np.cumsum(weight) / weight.sum() * settings.num_events).astype(np.int64)
    return np.diff(bounds, prepend=0)


def make_users(
    settings: SyntheticSettings, catalogue: Catalogue, num_events_U: np.ndarray, *, first: int, user_sd_R: np.ndarray
) -> Users:
    """Draws users `first`, `first` + 1, ... of given activity; `user_sd_R` is the spread of their bias per response."""
    rng = np.random.default_rng([settings.seed, 2, first])
    num_users, num_topics = len(num_events_U), settings.num_topics
    rows = np.arange(num_users)[:, None]
    interests = np.argsort(rng.random((num_users, num_topics)), axis=1)[:, : len(INTEREST_WEIGHTS)]
    affinity = rng.normal(-0.5, 0.3, (num_users, num_topics))
    affinity[rows, interests] = INTEREST_AFFINITIES + rng.normal(0, 0.3, interests.shape)
    # Liked authors belong to the strongest interests, the popular ones more often.
    liked = np.empty((num_users, NUM_LIKED_AUTHORS), np.int64)
    author_offsets = offsets_of(catalogue.author_topic_A, num_topics)
    cumulative = np.r_[0.0, np.cumsum(catalogue.author_popularity_A)]
    for column in range(NUM_LIKED_AUTHORS):
        topic = interests[:, column]
        low, high = cumulative[author_offsets[topic]], cumulative[author_offsets[topic + 1]]
        target = low + rng.random(num_users) * (high - low)
        liked[:, column] = np.clip(
            np.searchsorted(cumulative, target, side="right") - 1, author_offsets[topic], author_offsets[topic + 1] - 1
        )
    # An engaged user is so in every response, and a little more so than by chance.
    bias = 0.5 * rng.normal(0, 1, (num_users, 1)) + 0.87 * rng.normal(0, 1, (num_users, len(user_sd_R)))
    late = rng.random(num_users) < 0.15
    return Users(
        user_id_U=first + np.arange(num_users),
        num_events_U=num_events_U,
        join_day_U=np.where(late, rng.integers(0, max(1, settings.num_days - 2), num_users), 0),
        interests_U3=interests,
        affinity_UK=affinity.astype(np.float32),
        liked_authors_U3=liked,
        bias_UR=(bias * user_sd_R).astype(np.float32),
        phase_U=rng.normal(0, 1.5, num_users),
    )
