"""Typed, closed configuration of the section `study` of params.yaml, and the settings that it spells out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, ValidationError

from features.config import Closed, Section
from features.errors import DataError
from model.config import Kind, ModelConfig

Positive = Annotated[int, Field(ge=1)]
Changes = dict[str, Any]


class GridConfig(Closed):
    """Every kind at every depth and length of one stream; the other streams stay as the section model has them.

    A pyramid's steps that a depth or a length has no room for are left out.
    """

    stream: str
    kinds: Annotated[tuple[Kind, ...], Field(min_length=1)]
    depths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    lengths: Annotated[tuple[Positive, ...], Field(min_length=1)]


class EqualFlopsConfig(Closed):
    """Kinds beside the section model's own, each with the depths at which it is nearest in training operations."""

    kinds: tuple[Kind, ...]
    max_depth: Positive


class StudyConfig(Section):
    """What to train and compare.

    seeds: every cell is trained once with each.
    grid: null leaves it out.
    equal_flops: null leaves it out.
    ablations: changes to the section model by name, as dotted keys; `streams.NAME: null` leaves a stream out. An entry
    without changes is what the others are compared with.
    """

    section: ClassVar[str] = "study"

    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    grid: GridConfig | None
    equal_flops: EqualFlopsConfig | None
    ablations: dict[str, Changes]


def changed(config: ModelConfig, changes: Mapping[str, Any], *, key: str) -> ModelConfig:
    """The configuration with dotted keys set; a stream set to null is left out.

    Args:
        config: the section model.
        changes: values by dotted key.
        key: where params.yaml has these changes, for the message.

    Raises:
        DataError: a key is unknown, or the result makes no sense.
    """
    document = config.model_dump(mode="json")
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        owner = document
        for name in path:
            owner = owner[name] if isinstance(owner, dict) and isinstance(owner.get(name), dict) else {}
        if last not in owner:
            raise DataError(f"params.yaml: {key}: model has no '{dotted}' (a typo?)")
        if value is None and path == ["streams"]:
            del owner[last]
        else:
            owner[last] = value
    try:
        return ModelConfig.model_validate(document)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"params.yaml: {key}: model.{where}: {problem['msg']}") from None


def at_depth_and_length(config: ModelConfig, stream: str, *, num_layers: int, max_length: int) -> ModelConfig:
    """The configuration with another depth and length of one stream.

    Raises:
        DataError: the model has no such stream.
    """
    if stream not in config.streams:
        raise DataError(f"params.yaml: study.grid.stream: model.streams has no '{stream}'")
    pyramid, arriving = [], max_length
    for after_layer, keep in config.streams[stream].pyramid:
        if after_layer < num_layers and keep < arriving:
            pyramid.append([after_layer, keep])
            arriving = keep
    changes = {"num_layers": num_layers, "max_length": max_length, "pyramid": pyramid}
    return changed(config, {f"streams.{stream}.{name}": value for name, value in changes.items()}, key="study.grid")
