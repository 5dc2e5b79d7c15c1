"""dvc.yaml is complete: what a stage runs or reads is what makes it stale."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from flows.stage import stage_names

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
PACKAGES = ("features", "pipelines", "kernels", "model", "flows")


@pytest.fixture(scope="module")
def imports() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def outputs(stage: str) -> list[str]:
    return [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]


def module(stage: str) -> str:
    *_, python, flag, name = STAGES[stage]["cmd"].split()
    assert (python, flag) == ("python", "-m")
    return name


def test_stages_are_written_in_the_order_of_their_inputs():
    written: set[str] = set()
    everything = {output for stage in STAGES for output in outputs(stage)}
    for stage in stage_names(ROOT):
        missing = set(STAGES[stage]["deps"]) & everything - written
        assert not missing, f"{stage} reads {missing} of a later stage"
        written |= set(outputs(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_is_a_module_of_ours(stage: str):
    assert importlib.util.find_spec(module(stage)) is not None


@pytest.mark.parametrize("stage", STAGES)
def test_all_code_that_a_stage_imports_makes_it_stale(stage: str, imports: grimp.ImportGraph):
    entry = module(stage)
    entry = f"{entry}.__main__" if f"{entry}.__main__" in imports.modules else entry
    folders = tuple(f"{dependency.replace('/', '.')}." for dependency in STAGES[stage]["deps"])
    forgotten = {
        name
        for name in {entry, *imports.find_upstream_modules(entry)}
        if not f"{name}.".startswith(folders) and name not in PACKAGES
    }
    assert not forgotten


@pytest.mark.parametrize("stage", STAGES)
def test_outputs_are_ignored_by_the_committed_gitignore(stage: str):
    for output in outputs(stage):
        ignored = subprocess.run(["git", "check-ignore", "-q", "--no-index", output], cwd=ROOT, check=False)
        assert ignored.returncode == 0, output


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_watches_whole_sections_of_params(stage: str):
    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(STAGES[stage]["params"]) <= set(sections)


def test_every_section_of_params_makes_something_stale():
    watched = {section for stage in STAGES.values() for section in stage["params"]} | {"retrain", "study"}
    assert watched == set(yaml.safe_load((ROOT / "params.yaml").read_text()))


def test_parameters_have_types_that_dvc_can_read():
    def leaves(value: object) -> list[object]:
        if isinstance(value, dict):
            return [leaf for part in value.values() for leaf in leaves(part)]
        return [leaf for part in value for leaf in leaves(part)] if isinstance(value, list) else [value]

    values = leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))
    assert {type(value) for value in values} <= {str, int, float, bool, type(None)}
