"""params.yaml is edited in place, and never into something that a stage would refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from features.config import DataConfig
from features.errors import DataError
from flows.settings import apply_changes, edit_params, parse_assignment

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def params(tmp_path: Path) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text())
    return path


def changed_lines(path: Path) -> list[tuple[str, str]]:
    before, after = PARAMS.read_text().splitlines(), path.read_text().splitlines()
    assert len(before) == len(after)
    return [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]


def test_without_changes_the_file_is_only_checked(params: Path):
    modified = params.stat().st_mtime_ns
    edit_params(params, {})
    assert params.stat().st_mtime_ns == modified


def test_setting_what_is_set_already_leaves_the_file_alone(params: Path):
    modified = params.stat().st_mtime_ns
    edit_params(params, {"data.path": "data/raw/synthetic", "data.tabular": None, "features.requests.gap_ms": 1000})
    assert params.stat().st_mtime_ns == modified
    assert params.read_text() == PARAMS.read_text()


def test_one_edit_changes_one_line_and_keeps_its_comment(params: Path):
    edit_params(params, {"data.path": "/logs/kuairand"})
    ((before, after),) = changed_lines(params)
    assert "/logs/kuairand" in after
    assert after.partition("#")[2] == before.partition("#")[2] != ""
    assert DataConfig.load(params).path == Path("/logs/kuairand")


def test_values_are_yaml(params: Path):
    texts = [
        "model.streams.consumption.num_layers=3",
        "model.streams.consumption.pyramid=[[1, 16], [2, 8]]",
        "train.num_epochs=3",
        "train.dense_learning_rate=2.0e-3",
        "features.vocabulary.base=null",
        "model.global_axis=keys",
    ]
    edit_params(params, dict(parse_assignment(text) for text in texts))
    document = yaml.safe_load(params.read_text())
    assert document["model"]["streams"]["consumption"]["pyramid"] == [[1, 16], [2, 8]]
    assert document["train"]["num_epochs"] == 3
    assert document["train"]["dense_learning_rate"] == 0.002
    assert document["model"]["global_axis"] == "keys"
    assert all(after.count("#") == before.count("#") for before, after in changed_lines(params))


def test_a_mapping_of_a_tabular_log_can_be_set_in_one_go(params: Path):
    mapping = (
        "data.tabular={pattern: '*.parquet', columns: {user_id: u, item_id: i, timestamp: t, timestamp_unit: s},"
        " action_columns: {is_click: click}}"
    )
    edit_params(params, {"data.source": "parquet"} | dict([parse_assignment(mapping)]))
    tabular = DataConfig.load(params).tabular
    assert tabular is not None
    assert tabular.columns.timestamp_unit == "s"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.num_epoch": 2}, "train.num_epoch: unknown key"),
        ({"trian.num_epochs": 2}, "trian.num_epochs: unknown key"),
        ({"data.path.x": 2}, "data.path.x: unknown key"),
        ({"train.num_epochs": "many"}, "train.num_epochs"),
        ({"train.num_epochs": 0}, "train.num_epochs"),
        ({"data.timezone": "Mars/Olympus"}, "unknown time zone 'Mars/Olympus'"),
        ({"data.source": "kuairnd"}, "data.source"),
        ({"data.source": "csv"}, "data: .*tabular"),
        ({"features.streams.consumption": ["is_clik"]}, "unknown action 'is_clik'"),
        ({"model.streams.consumption.lokal_window": 3}, "model.streams.consumption.lokal_window: unknown key"),
    ],
)
def test_a_mistake_names_the_key_and_nothing_is_written(params: Path, changes: dict, message: str):
    with pytest.raises(DataError, match=message):
        edit_params(params, {"train.seed": 8} | changes)
    assert params.read_text() == PARAMS.read_text()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("num_epochs:", "num_epoch:", "train.num_epoch: unknown key"),
        ("evaluate:", "evalute:", "evalute: unknown section"),
        ("evaluate:", "evalute:", "section 'evaluate' is missing"),
        ("seed: 7", "seed: [7", "not valid YAML"),
    ],
)
def test_a_mistake_typed_into_the_file_is_found_before_anything_runs(params: Path, old: str, new: str, message: str):
    params.write_text(params.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        edit_params(params, {})


@pytest.mark.parametrize("text", ["train.seed", "seed=1", "train.seed=[1", "=", ""])
def test_an_assignment_of_another_form_is_refused(text: str):
    with pytest.raises(DataError, match="--set"):
        parse_assignment(text)


def test_outside_of_the_repository_the_user_is_told_where_to_go(tmp_path: Path):
    with pytest.raises(DataError, match="root folder of the repository"):
        edit_params(tmp_path / "params.yaml", {})


VALUES = st.one_of(
    st.integers(-(2**53), 2**53),
    st.booleans(),
    st.none(),
    st.text("abc :#'\"{}[]-,\n\tä", max_size=12),
    st.floats(-1000, 1000).map(lambda number: round(number, 3)),
    st.lists(st.integers(0, 9), max_size=3),
)


KEYS = (
    "train.seed",
    "data.tabular",
    "features.actions",
    "model.contextual",
    "model.streams.consumption",
    "evaluate.floor",
)


@given(key=st.sampled_from(KEYS), value=VALUES)
def test_any_value_is_read_back_and_everything_else_stays(key: str, value: object):
    expected = yaml.safe_load(PARAMS.read_text())
    *groups, name = key.split(".")
    group = expected
    for part in groups:
        group = group[part]
    group[name] = value
    assert yaml.safe_load(apply_changes(PARAMS.read_text(), {key: value}, PARAMS)) == expected
