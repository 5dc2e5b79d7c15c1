"""What the synthetic users do with what they see.

Whether a user responds to an item depends on the user's long-term interests, on an intent that starts and fades
within a session or a day, on liked and followed authors, on the mood of the session, and on what the user saw before.
The history shows all of it, and nothing else does.

Legend: E impressions, P pages, S sessions, U users, R responses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.sources.synthetic_schedule import Schedule, draw_intents, draw_items, earlier_in_group, make_schedule
from pipelines.sources.synthetic_world import Catalogue, SyntheticSettings, Users


@dataclass(frozen=True)
class Response:
    """How the logit of one response depends on the match; every response but hate needs a click.

    Attributes:
        bias: intercept.
        tab: per TABS.
        user_sd, item_sd: spread among users and among items.
        affinity, intent, author, followed, fatigue, mood: weights of the parts of Match.
        engagement: weight of the noise that the responses to one impression share.
    """

    bias: float
    tab: tuple[float, ...]
    user_sd: float
    item_sd: float
    affinity: float
    intent: float
    author: float
    followed: float
    fatigue: float
    mood: float
    engagement: float


_NO_TAB = (0.0, 0.0, 0.0, 0.0, 0.0)
RESPONSES: dict[str, Response] = {
    "is_click": Response(-1.93, (0.2, -2.6, 0.8, 0.1, -2.2), 0.95, 0.65, 1.1, 2.7, 0.7, 0.0, -0.15, 0.3, 0.0),
    "long_view": Response(0.1, (0.0, -0.8, 0.3, 0.1, -0.4), 0.7, 0.65, 0.65, 1.6, 0.6, 0.0, -0.05, 0.3, 0.4),
    "is_like": Response(-5.62, _NO_TAB, 1.0, 0.7, 0.8, 1.6, 1.2, 1.0, 0.0, 0.3, 0.6),
    "is_follow": Response(-7.05, _NO_TAB, 0.7, 0.5, 0.6, 1.0, 2.4, 0.0, 0.0, 0.3, 0.6),
    "is_comment": Response(-6.75, _NO_TAB, 1.0, 0.7, 0.8, 1.6, 1.1, 1.0, 0.0, 0.3, 0.6),
    "is_forward": Response(-6.88, _NO_TAB, 0.9, 0.7, 0.85, 1.6, 0.9, 0.6, 0.0, 0.3, 0.6),
    "is_profile_enter": Response(-5.53, _NO_TAB, 0.9, 0.7, 0.7, 1.5, 1.4, 0.6, 0.0, 0.3, 0.6),
    "is_hate": Response(-6.6, _NO_TAB, 0.8, 0.6, -0.8, -1.0, -1.5, -1.5, 0.2, -0.3, 0.0),
}
NAMES = tuple(RESPONSES)


@dataclass(frozen=True)
class Match:
    """How well each impression meets its user, as parts that the responses weigh.

    Attributes:
        affinity_E: long-term affinity to the item's topics.
        intent_E: 0 to 1, strength of the current intent when the item is about it.
        author_E: 1 for a liked author.
        fatigue_E: log(1 + impressions of the topic in this session's earlier pages) + 2 for an item seen before.
        mood_E: the session's.
    """

    affinity_E: np.ndarray
    intent_E: np.ndarray
    author_E: np.ndarray
    fatigue_E: np.ndarray
    mood_E: np.ndarray


@dataclass(frozen=True)
class Impressions:
    """A block of impressions sorted by user and time, without what the users did.

    Attributes:
        schedule: when.
        user_E, item_E, tab_E: rows of Users, Catalogue and TABS.
        match: how well they fit.
    """

    schedule: Schedule
    user_E: np.ndarray
    item_E: np.ndarray
    tab_E: np.ndarray
    match: Match


def make_impressions(
    users: Users, catalogue: Catalogue, settings: SyntheticSettings, rng: np.random.Generator
) -> Impressions:
    """Draws what a block of users sees and how well it matches; the block has at least one impression."""
    schedule = make_schedule(users, settings, rng)
    intent_P, strength_P = draw_intents(users, schedule, settings.num_topics, rng)
    item = draw_items(users, catalogue, schedule, intent_P=intent_P, rng=rng)
    page = schedule.page_E
    user, session = schedule.user_P[page], schedule.session_P[page]
    topic, second, author = catalogue.topic_N[item], catalogue.second_topic_N[item], catalogue.author_N[item]
    affinity = users.affinity_UK[user, topic]
    affinity = np.where(second >= 0, 0.7 * affinity + 0.3 * users.affinity_UK[user, second], affinity)
    ones = np.ones(len(item), np.int64)
    same_topic = earlier_in_group(session * settings.num_topics + topic, page, ones)
    same_item = earlier_in_group(user * len(catalogue.video_id_N) + item, page, ones)
    match = Match(
        affinity_E=affinity,
        intent_E=np.where(topic == intent_P[page], strength_P[page], 0.0),
        author_E=(users.liked_authors_U3[user] == author[:, None]).any(axis=1).astype(float),
        fatigue_E=np.log1p(same_topic) + 2.0 * (same_item > 0),
        mood_E=rng.normal(0, 1, len(schedule.tab_S))[session],
    )
    return Impressions(schedule=schedule, user_E=user, item_E=item, tab_E=schedule.tab_S[session], match=match)


def response_probability(
    name: str,
    impressions: Impressions,
    users: Users,
    catalogue: Catalogue,
    *,
    followed_E: np.ndarray,
    engagement_E: np.ndarray,
) -> np.ndarray:
    """(E,) probability of a response, given a click for all but click and hate."""
    response, match, column = RESPONSES[name], impressions.match, NAMES.index(name)
    duration = catalogue.duration_ms_N[impressions.item_E]
    logit = (
        response.bias
        + np.array(response.tab)[impressions.tab_E]
        + users.bias_UR[impressions.user_E, column]
        + catalogue.quality_NR[impressions.item_E, column]
        + response.affinity * match.affinity_E
        + response.intent * match.intent_E
        + response.author * match.author_E
        + response.followed * followed_E
        + response.fatigue * match.fatigue_E
        + response.mood * match.mood_E
        + response.engagement * engagement_E
    )
    if name == "long_view":
        logit = logit - 0.5 * np.log(duration / 25_000)
        # KuaiRand calls a short video's click and long view by the same rule: it played to its end.
        return np.where(duration <= 7_000, 1.0, 1 / (1 + np.exp(-logit)))
    return 1 / (1 + np.exp(-logit))


def draw_responses(
    impressions: Impressions, users: Users, catalogue: Catalogue, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """0/1 columns by name, in an order in which each depends on the ones before; an author is followed once."""
    page, user = impressions.schedule.page_E, impressions.user_E
    author = catalogue.author_N[impressions.item_E]
    engagement = rng.normal(0, 1, len(page))
    followed = np.zeros(len(page))
    drawn: dict[str, np.ndarray] = {}
    for name in ("is_click", "is_follow", *(name for name in NAMES if name not in ("is_click", "is_follow"))):
        probability = response_probability(
            name, impressions, users, catalogue, followed_E=followed, engagement_E=engagement
        )
        drawn[name] = rng.random(len(page)) < probability
        if name not in ("is_click", "is_hate"):
            drawn[name] &= drawn["is_click"]
        if name == "is_follow":
            group = user * len(catalogue.author_topic_A) + author
            follow = drawn[name].astype(np.int64)
            followed = (earlier_in_group(group, page, follow) > 0).astype(float)
            drawn[name] &= earlier_in_group(group, np.arange(len(page)), follow) == 0
    return drawn
