"""The stage export: one name for one thing, figures of every precision, refusals before anything is written."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import yaml

from features.dataset import open_dataset
from features.errors import DataError
from features.files import read_json
from features.manifest import read_manifest, write_manifest
from model.export import export
from model.parity import ParityPaths, run
from model.scorer import Scorer
from model.serving.bundle import CARD, METRICS, TABLES, open_bundle
from model.training.checkpoint import load_checkpoint


def with_params(workspace, target, **sections):
    document = yaml.safe_load(workspace.params.read_text())
    for section, changes in sections.items():
        document[section] |= changes
    target.write_text(yaml.safe_dump(document, sort_keys=False))
    return target


def test_a_second_export_has_the_same_name_and_replaces_the_first(workspace, tmp_path):
    paths = dataclasses.replace(workspace.export_paths(tmp_path / "again"), metrics=workspace.root / "metrics")
    export(paths)
    export(paths)
    name = open_bundle(workspace.bundle).manifest.name
    assert [entry.name for entry in paths.out.iterdir()] == [name]
    assert read_json(paths.metrics / "inference.json")["bundle"] == name


def _sums(scorer, rows):
    tables = scorer.model.tables
    return tables(tables.plan(rows, torch.arange(rows.numel() + 1)))


@pytest.mark.parametrize(("embeddings", "group_size"), [("int4", None), ("int4", 8), ("int8", None), ("fp16", None)])
def test_every_precision_loads_and_stays_near(workspace, tmp_path, embeddings, group_size):
    paths = workspace.export_paths(tmp_path / "bundle")
    changes = {"embeddings": embeddings, "group_size": group_size, "parity_requests": 3}
    export(dataclasses.replace(paths, params=with_params(workspace, tmp_path / "params.yaml", export=changes)))
    bundle = open_bundle(paths.out)
    assert bundle.contents.tables.rows.precision == embeddings
    whole = open_bundle(workspace.bundle)
    assert (bundle.path / TABLES).stat().st_size < (whole.path / TABLES).stat().st_size
    exact, rounded = Scorer(whole, Scorer.load(whole.path).config), Scorer.load(paths.out)
    rows = torch.arange(10)
    difference = _sums(exact, rows) - _sums(rounded, rows)
    assert 0 < difference.abs().max() < 0.02


def test_the_table_has_every_precision_and_its_card_too(workspace):
    bundle = open_bundle(workspace.bundle)
    table = read_json(bundle.path / METRICS)["parity"]
    labels = [row["label"] for row in table["variants"]]
    assert labels == [
        "fp32",
        "bf16, tables fp32",
        "fp8 simulated, tables fp32",
        "fp16",
        "int8",
        "int4",
        f"bundle {bundle.manifest.name}, fp32",
    ]
    first = table["variants"][0]
    assert (first["largest_difference"], first["table_share"]) == (0, 1)
    assert all(row["latency_p99_ms"] >= row["latency_p50_ms"] > 0 for row in table["variants"])
    assert table["variants"][-1]["largest_difference"] == 0
    shares = [row["table_share"] for row in table["variants"][:-1]]
    assert sorted(shares, reverse=True) == shares
    card = (bundle.path / CARD).read_text()
    for text in (bundle.manifest.name, "## Trained on", "## Limits", "| int4 |", "is_click", "UTC"):
        assert text in card


def test_fp32_figures_are_those_of_evaluate(workspace, tmp_path):
    """All requests of the window: cached scoring in any batches gives the stage evaluate's NE and AUC."""
    paths = workspace.export_paths(tmp_path / "bundle")
    params = with_params(workspace, tmp_path / "params.yaml", export={"parity_requests": None})
    export(dataclasses.replace(paths, params=params))
    metrics = read_json(open_bundle(paths.out).path / METRICS)
    found = metrics["parity"]["variants"][0]
    assert metrics["parity"]["num_candidates"] == metrics["evaluate"]["num_candidates"]
    for task, figures in metrics["evaluate"]["tasks"].items():
        assert found["tasks"][task]["ne"] == pytest.approx(figures["ne"], rel=1e-6)
        assert found["tasks"][task]["auc"] == pytest.approx(figures["auc"], abs=1e-3)


def test_a_bundle_needs_no_optimizer(workspace):
    bundle = open_bundle(workspace.bundle)
    checkpoint = load_checkpoint(workspace.root / "ranker")
    assert bundle.tensors("weights.safetensors").keys() == dict(checkpoint.tensors["dense"]).keys()
    assert set(bundle.tensors(TABLES)) == {"segment0", "segment1"}


def test_streams_of_another_vocabulary_are_refused(workspace, tmp_path):
    manifest = read_manifest(workspace.streams)
    write_manifest(workspace.streams, manifest.model_copy(update={"vocabulary_hash": "e" * 64}))
    try:
        with pytest.raises(DataError, match="was built with eeeeeeeeeeee"):
            export(workspace.export_paths(tmp_path / "bundle"))
    finally:
        write_manifest(workspace.streams, manifest)
    assert not (tmp_path / "bundle").exists()
    assert open_dataset(workspace.streams)


def test_a_kind_without_a_cache_and_a_missing_catalogue_leave_no_bundle(workspace, tmp_path):
    paths = workspace.export_paths(tmp_path / "bundle")
    din = with_params(workspace, tmp_path / "params.yaml", model={"kind": "din"})
    with pytest.raises(DataError, match="'din' cannot be cached"):
        export(dataclasses.replace(paths, params=din))
    with pytest.raises(DataError, match=r"items\.parquet: cannot be read"):
        export(dataclasses.replace(paths, events=tmp_path))
    assert not paths.out.exists()


def test_groups_are_for_int4(workspace, tmp_path):
    params = with_params(workspace, tmp_path / "params.yaml", export={"embeddings": "int8", "group_size": 8})
    with pytest.raises(DataError, match="only int4 has groups"):
        export(dataclasses.replace(workspace.export_paths(tmp_path / "bundle"), params=params))


def test_the_parity_command_measures_a_bundle_beside_the_checkpoint(workspace, tmp_path):
    root = workspace.root
    run(
        ParityPaths(
            workspace.params, workspace.streams, root / "ranker", workspace.bundle, tmp_path / "inference.json"
        ),
        max_requests=5,
    )
    table = read_json(tmp_path / "inference.json")
    assert table["num_requests"] == 5
    assert table["variants"][-1]["label"].startswith("bundle ")
    assert table["training_forward_one_request_at_a_time_candidates_per_s"] > 0
