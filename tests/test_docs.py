"""What the documents name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/cluster.md",
    "docs/decisions.md",
    "docs/data-contract.md",
    "docs/operations.md",
    "docs/sources.md",
)
CODE = re.compile(r"`((?:features|pipelines|kernels|model|flows|tests|docs)/[\w./-]*|[\w.-]+\.(?:lock|toml|yaml|md))`")
LINK = re.compile(r"\]\(([\w./-]+)\)")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_files_that_a_document_names_exist(document: str):
    text = (ROOT / document).read_text()
    places = (ROOT, (ROOT / document).parent)
    for name in {*CODE.findall(text), *LINK.findall(text)} - {"dvc.lock"}:
        assert any((place / name).exists() for place in places), name


def test_the_readmes_example_of_a_mapping_is_one():
    from features.config import TabularMapping

    block = re.search(r"```yaml\n(data:.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    mapping = TabularMapping.model_validate(yaml.safe_load(block[1])["data"]["tabular"])
    assert mapping.action_values == {"view": "", "click": "is_click", "buy": "is_buy"}


def test_versions_in_the_readme_are_those_of_the_locks():
    readme = (ROOT / "README.md").read_text()
    for lock, fbgemm in (("requirements-cpu.lock", "fbgemm-gpu-cpu"), ("requirements-cuda.lock", "fbgemm-gpu")):
        pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / lock).read_text().lower(), re.MULTILINE))
        row = next(line for line in readme.splitlines() if line.startswith("|") and lock in line)
        assert [cell.strip() for cell in row.split("|")[2:5]] == [
            pins["torch"],
            pins["triton"],
            f"{fbgemm} {pins[fbgemm]}",
        ]
