"""The store of models and its pointer."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.errors import DataError
from flows.models import ModelStore, StoredModel

ROOT = Path(__file__).parents[3]
DAY = datetime.date(2024, 2, 29)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def add(store: ModelStore, tmp_path: Path, text: str, date: datetime.date = DAY) -> StoredModel:
    for name in ("ranker", "vocab"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{name}.bin").write_text(text)
    return store.add(tmp_path / "ranker", tmp_path / "vocab", date)


def test_equal_content_is_one_model(store: ModelStore, tmp_path: Path):
    first, again, other = add(store, tmp_path, "a"), add(store, tmp_path, "a"), add(store, tmp_path, "b")
    assert first == again
    assert {stored.model for stored in store.all()} == {first.model, other.model}
    assert (store.path(first.model) / "ranker" / "ranker.bin").read_text() == "a"


def test_promotion_and_rollback_move_one_pointer(store: ModelStore, tmp_path: Path):
    assert store.champion() is None
    a, b = add(store, tmp_path, "a"), add(store, tmp_path, "b")
    store.promote(a.model, DAY, by="gate")
    store.promote(b.model[:6], DAY, by="gate")
    store.promote(b.model, DAY, by="gate")
    assert [promotion.model for promotion in store.reign()] == [a.model, b.model]
    assert store.rollback().model == a.model
    champion = store.champion()
    assert champion is not None
    assert champion.model == a.model
    with pytest.raises(DataError, match="no earlier champion"):
        store.rollback()


def test_a_damaged_or_missing_model_is_never_the_champion(store: ModelStore, tmp_path: Path):
    a, b = add(store, tmp_path, "a"), add(store, tmp_path, "b")
    store.promote(a.model, DAY, by="gate")
    (store.path(b.model) / "vocab" / "vocab.bin").write_text("c")
    with pytest.raises(DataError, match=r"vocab\.bin: missing or damaged"):
        store.promote(b.model, DAY, by="gate")
    with pytest.raises(DataError, match="no such model"):
        store.promote("0123", DAY, by="gate")
    champion = store.champion()
    assert champion is not None
    assert champion.model == a.model


def test_pruning_spares_who_ever_was_champion_and_what_is_young(store: ModelStore, tmp_path: Path):
    later = DAY + datetime.timedelta(days=3)
    a, b, c, d = (add(store, tmp_path, text, date) for text, date in (("a", DAY), ("b", DAY), ("c", DAY), ("d", later)))
    store.promote(a.model, DAY, by="gate")
    store.promote(b.model, DAY, by="gate")
    store.rollback()
    assert store.prune(later) == [c.model]
    assert {stored.model for stored in store.all()} == {a.model, b.model, d.model}
    assert store.prune(later + datetime.timedelta(days=1), keep=[d.model]) == []


def test_a_pointer_of_another_form_is_named(store: ModelStore, tmp_path: Path):
    add(store, tmp_path, "a")
    (tmp_path / "models" / "champion.json").write_text(json.dumps({"reign": [{"model": "a"}]}))
    with pytest.raises(DataError, match=r"champion\.json: champion\.reign\.0\.date"):
        store.champion()


def hstu2(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", "models", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_promotes_and_goes_back(store: ModelStore, tmp_path: Path):
    assert "no models yet" in hstu2(tmp_path, "list").stdout
    a, b = add(store, tmp_path, "a"), add(store, tmp_path, "b", DAY + datetime.timedelta(days=1))
    store.promote(a.model, DAY, by="gate")
    assert hstu2(tmp_path, "promote", b.model[:8]).stdout == f"{b.model} of 2024-03-01 is the champion\n"
    lines = hstu2(tmp_path, "list").stdout.splitlines()
    assert lines[0].endswith("promoted before")
    assert lines[1].endswith("champion")
    assert hstu2(tmp_path, "rollback").stdout == f"{a.model} of 2024-02-29 is the champion again\n"
    refused = hstu2(tmp_path, "rollback")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
