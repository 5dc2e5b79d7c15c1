"""The settings that docs/sources.md shows fit together, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from features.config import DataConfig, FeaturesConfig
from features.errors import DataError
from model.config import ModelConfig
from model.training.train_config import EvaluateConfig
from pipelines.sources.plan import plan_logs
from tests.pipelines.published.built import EXAMPLES, Build, Example


@pytest.mark.parametrize("source", EXAMPLES)
def test_the_documents_settings_fit_together(source: str, example: Example) -> None:
    params = example(source)
    features, model, evaluate = FeaturesConfig.load(params), ModelConfig.load(params), EvaluateConfig.load(params)
    assert DataConfig.load(params).source == source
    assert set(model.heads.tasks) <= set(features.actions)
    assert {name for names in evaluate.groups.values() for name in names} <= set(model.heads.tasks)
    assert {name for group in model.contextual for name in group} <= set(features.user_categories)


@pytest.mark.parametrize(
    ("source", "files", "changes", "message"),
    [
        ("otto", {}, {}, "no train.jsonl or test.jsonl or otto-recsys-train.jsonl or otto-recsys-test.jsonl in it or"),
        ("otto", {"train.jsonl": "[1]\n"}, {}, "train.jsonl: the first line is JSON but not an object"),
        ("otto", {"train.jsonl": "session,aid\n"}, {}, "train.jsonl: the first line is not JSON"),
        (
            "otto",
            {"train.jsonl": "{}\n"},
            {"actions": ["is_buy"], "streams": {"consumption": "all"}},
            "features.actions: 'is_buy' is unknown, OTTO has is_click, is_cart, is_order",
        ),
        (
            "movielens",
            {"ratings.csv": "userId,movieId,rating,timestamp\n", "movies.csv": "movieId,title,genres\n"},
            {"user_categories": ["age"]},
            "features.user_categories: 'age' is unknown, the dataset has none",
        ),
        (
            "movielens",
            {"ratings.csv": "userId,movieId\n"},
            {},
            "ratings.csv: column 'timestamp' is missing (a column of",
        ),
        (
            "movielens",
            {"ratings.csv": "userId,movieId,rating,timestamp\n"},
            {},
            "no movies.csv, which features.item_categories needs for 'genre'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    raw: Path, example: Example, source: str, files: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    for name, text in files.items():
        (raw / name).write_text(text)
    params = example(source, features=changes)
    with pytest.raises(DataError) as error:
        plan_logs(DataConfig.load(params), FeaturesConfig.load(params))
    assert message in str(error.value)


def test_a_misspelt_source_fails_by_name(example: Example) -> None:
    with pytest.raises(DataError, match=r"data\.source: Input should be 'kuairand', 'movielens', 'otto', 'taobao'"):
        DataConfig.load(example("otto", data={"source": "oto"}))


def test_the_generic_example_of_the_document(raw: Path, example: Example, build: Build) -> None:
    rows = ["1\t5\t1650600000\t4.5\t10\t50", "1\t6\t1650700000\t2\t\t", "2\t5\t1650700000.25\t3\t4\t120", "1\t6"]
    (raw / "log.tsv").write_text("\n".join(rows) + "\n", encoding="latin-1")
    found = build(example("csv", data={"timezone": "UTC", "eval_days": 1, "max_quarantine_ratio": 0.5}))
    assert found.masks("csv") == [{"is_liked"}, {"is_disliked"}, set()]
    columns = found.events.select("timestamp_ms", "watch_ms", "duration_ms", "value")
    assert columns.rows() == [
        (1650600000000, 5000, 10000, 4.5),
        (1650700000000, None, None, 2.0),
        (1650700000250, 4800, 4000, 3.0),
    ]
    assert found.quarantine.select("row", "reason", "content").rows() == [(4, "too few fields", "1\t6")]
