"""Edits params.yaml in place: comments and layout stay, and nothing is written that a stage would refuse."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from features.config import DataConfig, FeaturesConfig, Section, describe
from features.errors import DataError
from features.files import atomic_file
from model.config import ModelConfig
from model.train_config import EvaluateConfig, TrainConfig
from pipelines.config import PipelinesConfig

SECTIONS: tuple[type[Section], ...] = (
    DataConfig,
    FeaturesConfig,
    PipelinesConfig,
    ModelConfig,
    TrainConfig,
    EvaluateConfig,
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
        return key.strip(), _editor().load(value)
    except YAMLError:
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
    """The YAML text with the dotted keys set.

    Raises:
        DataError: the text is not YAML, or a key leads through something that is not a group of settings.
    """
    editor = _editor()
    try:
        document = editor.load(text)
    except YAMLError as error:
        raise DataError(f"{path}: not valid YAML: {error}") from None
    for key, value in changes.items():
        *groups, name = key.split(".")
        node = document
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise DataError(f"{path}: {key}: there is no group of settings {'.'.join(groups)!r}")
        if name not in node or node[name] != value:
            node[name] = value
    out = io.StringIO()
    editor.dump(document, out)
    return out.getvalue()


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


def _editor() -> YAML:
    """A round-trip editor that keeps the file's own layout."""
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return editor
