from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from features.errors import DataError
from model.config import ModelConfig

PARAMS = Path(__file__).parents[3] / "params.yaml"


def stream(**changes):
    settings = {"max_length": 24, "num_layers": 3, "local_window": 3, "global_window": 2, "pyramid": []}
    return {"streams": {"consumption": settings | changes}}


def test_the_projects_own_settings_load():
    assert ModelConfig.load(PARAMS).model_dump(mode="json") == yaml.safe_load(PARAMS.read_text())["model"]


def test_a_pyramid_of_several_steps_is_accepted(make_config):
    assert make_config(**stream(pyramid=[[1, 12], [2, 3]])).streams["consumption"].pyramid == ((1, 12), (2, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (stream(pyramid=[[3, 4]]), "after_layer 3 must be above 0 and below num_layers 3"),
        (stream(pyramid=[[2, 8], [1, 4]]), "after_layer 1 must be above 2"),
        (stream(pyramid=[[1, 8], [1, 4]]), "after_layer 1 must be above 1"),
        (stream(pyramid=[[1, 24]]), "keep 24 after layer 1 must be below 24"),
        (stream(pyramid=[[1, 8], [2, 8]]), "keep 8 after layer 2 must be below 8"),
        (stream(pyramid=[[1]]), "streams.consumption.pyramid"),
        (stream(pyramid=[[0, 4]]), "streams.consumption.pyramid"),
        (stream(max_length=0), "streams.consumption.max_length"),
        (stream(local_window=-1), "streams.consumption.local_window"),
        (stream(window=3), "streams.consumption.window"),
        ({"streams": {}}, "streams"),
        ({"dim": 18}, "dim"),
        ({"dropout": 1.0}, "dropout"),
        ({"global_axis": "rows"}, "global_axis"),
        ({"impl": "cuda"}, "impl"),
        ({"compute": "fp16"}, "compute"),
        ({"gemm": "fp8"}, "gemm: fp8 needs compute: bf16"),
        ({"contextual": [["user"], ["user", "level"]]}, "'user' is listed twice"),
        ({"contextual": [[]]}, "contextual"),
        ({"heads": {"tasks": [], "hidden_dim": 8, "watch_ratio_weight": 0}}, "heads.tasks"),
        ({"heads": {"tasks": ["like", "like"], "hidden_dim": 8, "watch_ratio_weight": 0}}, "listed twice"),
        ({"heads": {"tasks": ["like"], "hidden_dim": 8, "watch_ratio_weight": -1}}, "heads.watch_ratio_weight"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make_config, changes, message):
    with pytest.raises(ValidationError) as error:
        make_config(**changes)
    keys = [".".join(str(part) for part in problem["loc"]) for problem in error.value.errors()]
    assert message in str(error.value) or any(key.startswith(message) for key in keys)


@pytest.mark.parametrize("key", ["dim", "pyramid", "tasks"])
def test_a_missing_setting_is_named(tmp_path, key):
    document = yaml.safe_load(PARAMS.read_text())
    model = document["model"]
    owner = next(part for part in (model, model["streams"]["consumption"], model["heads"]) if key in part)
    del owner[key]
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(DataError, match=rf"params\.yaml: model\..*{key}: Field required"):
        ModelConfig.load(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {"tasks": ["share"], "hidden_dim": 8, "watch_ratio_weight": 0}}, "model.heads.tasks: .* 'share'"),
        ({"contextual": [["user"], ["level", "zip"]]}, "model.contextual.1: .* 'zip'"),
        ({"streams": {"search": stream()["streams"]["consumption"]}}, "model.streams: .* 'search'"),
    ],
)
def test_what_the_dataset_lacks_is_refused_by_name(make_config, spec, changes, message):
    with pytest.raises(DataError, match=message):
        make_config(**changes).check_against(spec)
