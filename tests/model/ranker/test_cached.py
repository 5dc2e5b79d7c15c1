"""Cached histories change no score: against the ranker's own forward, one by one, and in any grouping."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import DataError
from kernels import lengths_to_offsets
from model.batch import Batch, UIHStream
from model.embeddings import table_fields
from model.ranker import Ranker
from model.serving.cached_layer import KernelProducts, ModuleProducts
from model.serving.export_tables import segment_rows
from model.serving.quantize import RowFormat, TableFormat
from model.serving.scorer_model import ServedModel

CPU = torch.device("cpu")
FP32 = TableFormat(rows=RowFormat(precision="fp32"), small_rows=10)
TOLERANCE = {"rtol": 0.0, "atol": 1e-5}
SLOW_FIXTURES = [HealthCheck.function_scoped_fixture]


def lively_ranker(config, spec, seed=0) -> Ranker:
    """A ranker whose probabilities spread out, so that an error in the attention shows."""
    torch.manual_seed(seed)
    ranker = Ranker(config, spec)
    with torch.no_grad():
        for weight in ranker.table_state().values():
            weight.normal_(std=0.7)
        for name, weight in ranker.dense_parameters().items():
            if weight.ndim > 1 and not name.endswith("norm.weight"):
                weight.mul_(2.0)
        ranker.heads.weight.normal_(std=0.7)
    return ranker.eval()


def served(ranker: Ranker, compute="fp32") -> ServedModel:
    model = ServedModel(ranker.config, ranker.spec, FP32, device=CPU, placement="host", compute=compute)
    rows = segment_rows(ranker.table_state(), ranker.config, ranker.spec, table_format=FP32)
    model.load(ranker.dense_state(), rows)
    return model


def request_of(batch: Batch, number: int, candidates: slice | None = None) -> Batch:
    """One request of a batch alone, with all or some of its candidates."""

    def rows(offsets_B1):
        return slice(int(offsets_B1[number]), int(offsets_B1[number + 1]))

    def cut(carrier, part):
        names = [f.name for f in fields(carrier) if f.name not in ("offsets_B1", "lengths")]
        values = {name: getattr(carrier, name)[part] for name in names}
        if isinstance(carrier, UIHStream):
            values["lengths"] = (part.stop - part.start,)
        return replace(carrier, offsets_B1=torch.tensor([0, part.stop - part.start]), **values)

    own = rows(batch.candidates.offsets_B1)
    if candidates is not None:
        own = slice(own.start + candidates.start, min(own.start + candidates.stop, own.stop))
    return Batch(
        request_id_B=batch.request_id_B[number : number + 1],
        user_id_B=batch.user_id_B[number : number + 1],
        request_ms_B=batch.request_ms_B[number : number + 1],
        users_BF=batch.users_BF[number : number + 1],
        streams=tuple(cut(stream, rows(stream.offsets_B1)) for stream in batch.streams),
        candidates=cut(batch.candidates, own),
    )


@st.composite
def cases(draw):
    """Settings of a model and the lengths of a batch."""

    def stream(max_length):
        layers = draw(st.integers(1, 3))
        cuts = sorted(draw(st.sets(st.integers(1, layers - 1), max_size=2))) if layers > 1 else []
        keeps = sorted(draw(st.sets(st.integers(1, 6), min_size=len(cuts), max_size=len(cuts))), reverse=True)
        return {
            "max_length": max_length,
            "num_layers": layers,
            "local_window": draw(st.sampled_from([0, 2, 24])),
            "global_window": draw(st.sampled_from([0, 3])),
            "pyramid": [list(cut) for cut in zip(cuts, keeps, strict=True)],
        }

    streams = {"consumption": stream(24)}
    if draw(st.booleans()):
        streams["interaction"] = stream(8)
    num_requests = draw(st.integers(1, 4))
    lengths = [
        draw(st.lists(st.integers(0, bound), min_size=num_requests, max_size=num_requests)) for bound in (24, 8, 5)
    ]
    changes = {
        "streams": streams,
        "global_axis": draw(st.sampled_from(["queries", "keys"])),
        "contextual": draw(st.sampled_from([[], [["user"], ["level", "city"]]])),
        "heads": {"tasks": ["click", "like"], "hidden_dim": 8, "watch_ratio_weight": draw(st.sampled_from([0.0, 0.1]))},
    }
    return changes, lengths, draw(st.integers(1, 12)), draw(st.integers(0, 1 << 16))


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW_FIXTURES)
@given(case=cases())
def test_cached_equals_uncached_and_one_by_one(case, make_config, make_batch, spec):
    changes, lengths, micro_batch_size, seed = case
    ranker = lively_ranker(make_config(**changes), spec, seed)
    model, batch = served(ranker), make_batch(*lengths, seed=seed)
    with torch.inference_mode():
        expected = ranker(batch)
    found = model(batch, micro_batch_size=micro_batch_size)
    probability_CK = torch.sigmoid(found.logits_CK)
    torch.testing.assert_close(probability_CK, torch.sigmoid(expected.logits_CK), **TOLERANCE)
    if expected.watch_ratio_C is not None:
        torch.testing.assert_close(found.watch_ratio_C, expected.watch_ratio_C, rtol=1e-4, atol=1e-4)
    alone = [
        model(request_of(batch, number, slice(place, place + 1)), micro_batch_size=1).logits_CK
        for number, count in enumerate(lengths[2])
        for place in range(count)
    ]
    torch.testing.assert_close(torch.sigmoid(torch.cat([found.logits_CK[:0], *alone])), probability_CK, **TOLERANCE)


@settings(max_examples=15, deadline=None, suppress_health_check=SLOW_FIXTURES)
@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4), mates=st.integers(0, 3))
def test_batch_mates_and_micro_batches_change_nothing(sizes, mates, make_config, make_batch, spec):
    model = served(lively_ranker(make_config(), spec))
    batch = make_batch([24, 3, 0, 17], [8, 0, 2, 5], [5, 7, 1, 4])
    chosen = torch.sigmoid(model(request_of(batch, mates), micro_batch_size=1000).logits_CK)
    begin, end = batch.candidates.offsets_B1[mates : mates + 2].tolist()
    for size in sizes:
        together = torch.sigmoid(model(batch, micro_batch_size=size).logits_CK)
        torch.testing.assert_close(together[begin:end], chosen, **TOLERANCE)


def test_a_history_matters_to_the_scores_that_are_compared(make_config, make_batch, spec):
    model = served(lively_ranker(make_config(), spec))
    batch = make_batch([24], [8], [3])
    emptied = make_batch([0], [0], [3])
    emptied = replace(emptied, users_BF=batch.users_BF, candidates=batch.candidates)
    with_history, without = (torch.sigmoid(model(b, micro_batch_size=8).logits_CK) for b in (batch, emptied))
    assert (with_history - without).abs().max() > 0.01


def test_layers_behind_a_truncation_keep_the_prefix_alone(make_config, make_batch, spec):
    stream = {"max_length": 24, "num_layers": 3, "local_window": 3, "global_window": 2, "pyramid": [[1, 6], [2, 2]]}
    model = served(lively_ranker(make_config(streams={"consumption": stream}), spec))
    tokens = model.embeddings(make_batch([20, 4, 0], [0, 0, 0], [2, 1, 1]))
    layers = model.cached.encode(tokens).streams["consumption"]
    lengths = [layer.offsets_B1.diff().tolist() for layer in layers]
    assert lengths == [[22, 6, 2], [8, 6, 2], [4, 4, 2]]
    assert all(layer.offsets_B1.tolist() == list(layer.host_offsets) for layer in layers)
    assert [layer.k_THA.shape[0] for layer in layers] == [sum(row) for row in lengths]
    assert all(layer.k_THA.is_contiguous() and layer.v_THV.is_contiguous() for layer in layers)


def test_what_no_candidate_reads_is_not_computed(make_config, make_batch, spec, monkeypatch):
    """The last layer of a history makes keys and values: no attention, no output."""
    model = served(lively_ranker(make_config(), spec))
    last = model.transducers.transducers["consumption"].stack.layers[-1]
    for part in ("attention_norm", "output"):
        monkeypatch.setattr(getattr(last, part), "forward", lambda *_: pytest.fail("computed"))
    tokens = model.embeddings(make_batch([20, 4], [3, 0], [2, 1]))
    model.cached.encode(tokens)


def test_kinds_without_keys_and_values_are_refused_by_name(make_config, spec):
    with pytest.raises(DataError, match=r"model\.kind: the histories of 'din' cannot be cached"):
        ServedModel(make_config(kind="din"), spec, FP32, device=CPU, placement="host")


def test_the_public_hstu_is_served_as_well(make_config, make_batch, spec):
    ranker = lively_ranker(make_config(kind="hstu"), spec)
    batch = make_batch([12, 0, 5], [4, 1, 0], [2, 3, 1])
    with torch.inference_mode():
        expected = torch.sigmoid(ranker(batch).logits_CK)
    found = torch.sigmoid(served(ranker)(batch, micro_batch_size=2).logits_CK)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("compute", ["bf16", "fp8"])
def test_narrow_products_stay_near(make_config, make_batch, spec, compute):
    ranker = lively_ranker(make_config(), spec)
    batch = make_batch([24, 3], [8, 0], [5, 7])
    exact, rounded = (
        torch.sigmoid(served(ranker, how)(batch, micro_batch_size=8).logits_CK) for how in ("fp32", compute)
    )
    assert 0 < (exact - rounded).abs().max() < {"bf16": 0.1, "fp8": 0.25}[compute]
    assert (exact - rounded).abs().mean() < {"bf16": 0.02, "fp8": 0.06}[compute]


def test_no_request_and_no_candidate_give_no_rows(make_config, make_batch, spec):
    model = served(lively_ranker(make_config(), spec))
    assert model(make_batch([], [], []), micro_batch_size=4).logits_CK.shape == (0, 2)
    batch = make_batch([3, 0], [1, 0], [0, 0])
    assert torch.equal(batch.candidates.offsets_B1, lengths_to_offsets(torch.tensor([0, 0])))
    assert model(batch, micro_batch_size=4).logits_CK.shape == (0, 2)


def test_tables_of_another_size_are_refused(make_config, spec):
    ranker = lively_ranker(make_config(), spec)
    rows = segment_rows(ranker.table_state(), ranker.config, spec, table_format=FP32)
    model = ServedModel(ranker.config, spec, FP32, device=CPU, placement="host")
    with pytest.raises(DataError, match="embedding rows are"):
        model.load(ranker.dense_state(), [rows[0][:, :-1], *rows[1:]])
    with pytest.raises(DataError, match="segments do not fit"):
        model.load(ranker.dense_state(), rows[:1])
    assert sum(field.size for field in table_fields(ranker.config, spec)) == sum(part.shape[1] for part in rows)


def test_a_layers_own_kernels_compute_what_its_modules_do(make_config, spec):
    """The way that a GPU takes in bf16, by the kernels' references."""
    layer = lively_ranker(make_config(), spec).transducers.transducers["consumption"].stack.layers[0]
    generator = torch.Generator().manual_seed(0)
    values_TD, attention_TE = (torch.randn(50, 16, generator=generator) for _ in range(2))
    for fp8, bound in ((False, 0.02), (True, 0.06)):
        kernels, modules = KernelProducts(layer, fp8=fp8), ModuleProducts(layer)
        with torch.inference_mode():
            gate_TE = modules.project(values_TD).u_TE
            found = (
                *kernels.project(values_TD.bfloat16()),
                *kernels.keys_and_values(values_TD.bfloat16()),
                kernels.output(attention_TE.bfloat16(), gate_TE.bfloat16(), values_TD.bfloat16()),
            )
            expected = (
                *modules.project(values_TD),
                *modules.keys_and_values(values_TD),
                modules.output(attention_TE, gate_TE, values_TD),
            )
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == torch.bfloat16
            assert one.shape == other.shape
            assert (one.float() - other).norm() < bound * other.norm()
