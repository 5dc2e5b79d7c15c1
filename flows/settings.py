"""Edits params.yaml in place: comments and layout stay, and nothing is written that a stage would refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from features.config import DataConfig, FeaturesConfig, Section, describe
from features.errors import DataError
from features.files import atomic_file
from flows.nightly.config import RetrainConfig
from model.config import ModelConfig
from model.serving.score_config import ExportConfig, ScoreConfig
from model.study.config import StudyConfig
from model.training.train_config import EvaluateConfig, TrainConfig
from pipelines.config import PipelinesConfig
from pipelines.validate_config import ValidateConfig

SECTIONS: tuple[type[Section], ...] = (
    DataConfig,
    FeaturesConfig,
    PipelinesConfig,
    ValidateConfig,
    ModelConfig,
    TrainConfig,
    EvaluateConfig,
    ExportConfig,
    ScoreConfig,
    StudyConfig,
    RetrainConfig,
)


def parse_assignment(text: str) -> tuple[str, Any]:
    """Splits `section.key=value`; the value is YAML.

    Raises:
        DataError: the text has another form.
    """
    key, separator, value = text.partition("=")
    if not separator or "." not in key:
        raise DataError(f"--set {text}: write section.key=value, as in train.num_epochs=2")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        raise DataError(f"--set {text}: the value is not valid YAML") from None


def edit_params(path: Path, changes: Mapping[str, Any]) -> None:
    """Sets dotted keys, checks all sections, and only then replaces the file; without changes it only checks.

    Raises:
        DataError: a key is unknown or a value out of range, in the file as it stands or after the changes.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; run hstu2 in the root folder of the repository")
    before = path.read_text()
    after = apply_changes(before, changes, path) if changes else before
    check_params(after, path)
    if after != before:
        with atomic_file(path) as temporary:
            temporary.write_text(after)


def apply_changes(text: str, changes: Mapping[str, Any], path: Path) -> str:
    """The YAML text with the dotted keys set; every byte that is not part of a changed value stays.

    Raises:
        DataError: the text is not YAML, or has no such key.
    """
    for key, value in changes.items():
        try:
            entry = _find(yaml.compose(text, Loader=yaml.SafeLoader), key, path)
        except yaml.YAMLError as error:
            raise DataError(f"{path}: not valid YAML: {error}") from None
        if yaml.safe_load(text[entry.start : entry.end]) != value or not entry.is_inline:
            text = _splice(text, entry, _inline(value))
    return text


def check_params(text: str, path: Path) -> None:
    """Checks that every section is there, known and valid.

    Raises:
        DataError: one line per problem: file, dotted key and reason.
    """
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: no settings in it")
    known = {section.section for section in SECTIONS}
    problems = [f"{path}: {name}: unknown section (a typo?)" for name in document if name not in known]
    problems += [f"{path}: section '{name}' is missing" for name in sorted(known - set(document))]
    for section in SECTIONS:
        try:
            section.model_validate(document.get(section.section, {}))
        except ValidationError as error:
            if section.section in document:
                problems.append(describe(error, path, section.section))
    if problems:
        raise DataError("\n".join(problems))


@dataclass(frozen=True)
class _Entry:
    """Where the value of a key is: text[start:end]; `is_inline` if it begins on the line of its key."""

    start: int
    end: int
    is_inline: bool


def _find(node: yaml.Node | None, key: str, path: Path) -> _Entry:
    name_node = node
    for name in key.split("."):
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((pair for pair in pairs if pair[0].value == name), None)
        if found is None:
            raise DataError(f"{path}: {key}: unknown key (a typo?)")
        name_node, node = found
    assert name_node is not None
    assert node is not None
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return _Entry(name_node.end_mark.index + 1, _end(node), is_inline=False)
    return _Entry(node.start_mark.index, node.end_mark.index, is_inline=True)


def _end(node: yaml.Node) -> int:
    """End of the last word of a value; the end mark of a group in block style is the start of what follows it."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style:
        return node.end_mark.index
    last = node.value[-1]
    return _end(last[1] if isinstance(last, tuple) else last)


def _splice(text: str, entry: _Entry, value: str) -> str:
    """Replaces a value and keeps the column of a comment behind it."""
    old, tail = text[entry.start : entry.end], text[entry.end :]
    if text[entry.start - 1] == ":":
        value = f" {value}"
    comment = re.match(r" +(?=#)", tail)
    if comment and "\n" not in old:
        tail = " " * max(1, len(comment[0]) + len(old) - len(value)) + tail[comment.end() :]
    return text[: entry.start] + value + tail


def _inline(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=math.inf, allow_unicode=True, sort_keys=False)[1:-2]
