"""A streams dataset of long synthetic histories in which length pays, made without the data pipeline.

python -m model.study.world --out data/long        256 users of 4,608 events each, in a minute

The pipeline's own synthetic logs tell most of a user in a few hundred events. Here every user has a taste of their own
for each of 8 topics and, within them, for each of 64 subtopics, drawn independently. All that shows of a taste is what
was clicked among the items that it is about:

    P(click) = sigmoid(bias + user + item + taste of the item's topic + taste of its subtopic)

256 events hold four of a candidate's subtopic, 1,024 hold sixteen and 4,096 hold 64: each length knows a taste better
than the one before. Nothing else about a user is told: there are no user categories, and which items are shown does not
depend on the taste. A session is a request, so that no candidate knows what its session's others met. Topics are there
because a model that has learnt to find the events of a candidate's topic soon finds those of its subtopic; with
subtopics alone it searches for long.

Legend: U users, N items, E events of one user.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.config import FeaturesConfig, IntensityConfig, RequestsConfig, VocabularyConfig
from features.encode import context_fields, intensity_size
from features.errors import DataError
from features.files import atomic_directory
from features.fingerprint import fingerprint
from features.manifest import (
    REQUESTS_FILE,
    USERS_FILE,
    Manifest,
    ShardEntry,
    file_entry,
    schemas_of,
    shard_name,
    write_manifest,
)
from features.schema import EVENTS, FORMAT_VERSION, ORDER, schema_hash
from features.shard import ShardEncoder, ShardTables, build_shard
from features.side import SideCodes
from features.spec import CategoricalField, FeatureSpec
from features.vocabulary import FIRST_KEY, Vocabulary, VocabularySet
from model.stage import run_stage

logger = logging.getLogger(__name__)

SESSION_EVENTS = 32
STEP_MS = 20_000
DAY_MS = 86_400_000
START_MS = 1_640_995_200_000
NUM_DAYS = 32
EVAL_DAYS = 4
# Slots longer than a session and its gap, so that sessions of a user never meet.
_SLOT_MS = 2 * SESSION_EVENTS * STEP_MS
MAX_SESSIONS = NUM_DAYS * DAY_MS // _SLOT_MS
ACTIONS = ("is_click", "long_view", "is_like")
FEATURES = FeaturesConfig(
    actions=ACTIONS,
    streams={"consumption": "all", "interaction": ("is_like",)},
    intensity=IntensityConfig(watch_ratio_edges=(), watch_ms_edges=(), value_edges=()),
    token_contexts=("hour", "gap"),
    candidate_contexts=("hour",),
    item_categories=("topic", "subtopic"),
    user_categories=(),
    requests=RequestsConfig(gap_ms=STEP_MS, max_candidates=SESSION_EVENTS),
    vocabulary=VocabularyConfig(min_count=1, base=None),
)


@dataclass(frozen=True)
class WorldSettings:
    """Size and seed of the world; equal settings give the same bytes.

    num_events is per user, a multiple of SESSION_EVENTS, at most MAX_SESSIONS of them.
    """

    num_users: int = 256
    num_events: int = 4608
    num_topics: int = 8
    num_subtopics: int = 64
    num_items: int = 4096
    topic_strength: float = 1.0
    subtopic_strength: float = 1.3
    seed: int = 7

    def __post_init__(self) -> None:
        most = MAX_SESSIONS * SESSION_EVENTS
        if self.num_events % SESSION_EVENTS or not 0 < self.num_events <= most:
            raise DataError(f"num_events is {self.num_events}: give a multiple of {SESSION_EVENTS} up to {most}")


@dataclass(frozen=True)
class Catalogue:
    """topic_N, subtopic_N and quality_N, (N,) each, and share_N (N,), how often an item is shown."""

    topic_N: np.ndarray
    subtopic_N: np.ndarray
    quality_N: np.ndarray
    share_N: np.ndarray


def make_catalogue(settings: WorldSettings) -> Catalogue:
    """Draws the items."""
    rng = np.random.default_rng([settings.seed, 0])
    weight_N = 1.0 / (rng.permutation(settings.num_items) + 50.0) ** 0.7
    subtopic_N = rng.integers(0, settings.num_subtopics, settings.num_items)
    return Catalogue(
        topic_N=subtopic_N % settings.num_topics,
        subtopic_N=subtopic_N,
        quality_N=rng.normal(0, 0.5, settings.num_items),
        share_N=weight_N / weight_N.sum(),
    )


def user_events(user: int, catalogue: Catalogue, settings: WorldSettings) -> dict[str, np.ndarray]:
    """One user's columns of EVENTS, oldest first; raw ids are rows."""
    rng = np.random.default_rng([settings.seed, 1, user])
    count = settings.num_events
    of_topic = settings.topic_strength * rng.normal(0, 1, settings.num_topics)
    of_subtopic = settings.subtopic_strength * rng.normal(0, 1, settings.num_subtopics)
    bias = rng.normal(0, 0.3)
    item_E = rng.choice(settings.num_items, count, p=catalogue.share_N)
    match_E = of_topic[catalogue.topic_N[item_E]] + of_subtopic[catalogue.subtopic_N[item_E]]
    logit_E = match_E + bias + catalogue.quality_N[item_E]
    click_E = rng.random(count) < _sigmoid(logit_E - 0.5)
    view_E = click_E & (rng.random(count) < _sigmoid(logit_E))
    like_E = click_E & (rng.random(count) < _sigmoid(match_E - 3.0))
    begin_S = np.sort(rng.choice(MAX_SESSIONS, count // SESSION_EVENTS, replace=False)) * _SLOT_MS
    time_E = (START_MS + begin_S[:, None] + np.arange(SESSION_EVENTS) * STEP_MS).ravel()
    return {
        "user_id": np.full(count, user, np.int64),
        "item_id": item_E.astype(np.int64),
        "timestamp_ms": time_E.astype(np.int64),
        "action_mask": (click_E + 2 * view_E + 4 * like_E).astype(np.uint32),
        "source_order": user * count + np.arange(count, dtype=np.int64),
    }


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logit))


def make_tables(settings: WorldSettings) -> tuple[ShardTables, VocabularySet]:
    """The only shard and the vocabulary, in which everything has a row."""
    catalogue = make_catalogue(settings)
    users = []
    for user in range(settings.num_users):
        users.append(user_events(user, catalogue, settings))
        if (user + 1) % 64 == 0:
            logger.info("study world: %d of %d users", user + 1, settings.num_users)
    columns = {name: np.concatenate([events[name] for events in users]) for name in users[0]}
    size = len(columns["user_id"])
    events = pa.Table.from_arrays(
        [pa.array(columns[f.name]) if f.name in columns else pa.nulls(size, f.type) for f in EVENTS], schema=EVENTS
    )
    vocabularies = VocabularySet(
        (
            _all_of("user", settings.num_users),
            _all_of("item", settings.num_items),
            _all_of("surface", 0),
            _names_of("topic", settings.num_topics),
            _names_of("subtopic", settings.num_subtopics),
        )
    )
    encoder = ShardEncoder(
        features=FEATURES,
        timezone="UTC",
        cut_ms=START_MS + (NUM_DAYS - EVAL_DAYS) * DAY_MS,
        vocabularies=vocabularies,
        items=SideCodes(
            np.arange(settings.num_items),
            tuple((codes + FIRST_KEY).astype(np.int32) for codes in (catalogue.topic_N, catalogue.subtopic_N)),
        ),
        users=SideCodes(np.arange(settings.num_users), ()),
    )
    return build_shard(events, encoder), vocabularies


def _all_of(field: str, size: int) -> Vocabulary:
    return Vocabulary(field, pa.array(np.arange(size)), _ones(size))


def _names_of(field: str, size: int) -> Vocabulary:
    return Vocabulary(field, pa.array([f"{code:06d}" for code in range(size)]), _ones(size))


def _ones(size: int) -> np.ndarray:
    return np.ones(size, np.int64)


def write_world(out: Path, settings: WorldSettings) -> None:
    """Writes the dataset; it appears whole."""
    tables, vocabularies = make_tables(settings)
    spec = _spec(vocabularies)
    with atomic_directory(out) as directory:
        folder = directory / shard_name(0, 1)
        folder.mkdir()
        for name, table in ((USERS_FILE, tables.users), (REQUESTS_FILE, tables.requests)):
            with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table.combine_chunks())
        entry = ShardEntry(
            name=folder.name,
            files={name: file_entry(folder / name) for name in (USERS_FILE, REQUESTS_FILE)},
            users=tables.users.num_rows,
            requests=tables.requests.num_rows,
            candidates=tables.num_events,
            events=tables.num_events,
            duplicates=tables.num_duplicates,
            stream_events={stream: _num_values(tables.users, f"{stream}.timestamp_ms") for stream in FEATURES.streams},
        )
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            order=ORDER,
            schema_hash=schema_hash(*schemas_of(spec)),
            params_hash="",
            vocabulary_hash=vocabularies.hash,
            cut_ms=START_MS + (NUM_DAYS - EVAL_DAYS) * DAY_MS,
            spec=spec,
            shards=(entry,),
            content_checksum=fingerprint(tables.users, tables.requests).hex,
        )
        write_manifest(directory, manifest)
    logger.info("%s: %d events, %d requests", out, tables.num_events, tables.requests.num_rows)


def _num_values(table: pa.Table, name: str) -> int:
    return len(table.column(name).combine_chunks().flatten())


def _spec(vocabularies: VocabularySet) -> FeatureSpec:
    sizes = vocabularies.sizes
    return FeatureSpec(
        actions=FEATURES.actions,
        streams=tuple(FEATURES.streams),
        item_fields=tuple(
            CategoricalField(name=name, size=sizes[name]) for name in ("item", *FEATURES.item_categories)
        ),
        user_fields=(CategoricalField(name="user", size=sizes["user"]),),
        token_contexts=context_fields(FEATURES.token_contexts, sizes["surface"]),
        candidate_contexts=context_fields(FEATURES.candidate_contexts, sizes["surface"]),
        intensity_size=intensity_size(FEATURES.intensity),
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.study.world", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/long"))
    parser.add_argument("--num-users", type=int, default=WorldSettings.num_users)
    parser.add_argument("--num-events", type=int, default=WorldSettings.num_events, help="of each user")
    parser.add_argument("--num-subtopics", type=int, default=WorldSettings.num_subtopics)
    given = parser.parse_args()
    out = given.out
    sizes = {name: value for name, value in vars(given).items() if name != "out"}
    run_stage(lambda: write_world(out, WorldSettings(**sizes)))


if __name__ == "__main__":
    main()
