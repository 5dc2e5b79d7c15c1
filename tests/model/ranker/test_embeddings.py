from dataclasses import replace

import pytest
import torch

from model.embeddings import AGE_EDGES_MS, POSITION_EDGES, TokenEmbeddings, table_fields


@pytest.fixture
def embeddings(make_config, spec):
    module = TokenEmbeddings(make_config(), spec, device=torch.device("cpu"))
    for weight in module.tables.weights().values():
        weight.normal_()
    return module


def rows(embeddings, **codes):
    """The sum of the named tables' rows; code 0 of a field adds nothing."""
    weights = embeddings.tables.weights()
    total = torch.zeros(16)
    for name, code in codes.items():
        table = name.replace("__", ".")
        is_field = table.startswith(("item.", "user.", "context.")) or table.endswith(".intensity")
        if code != 0 or not is_field:
            total = total + weights[table][code]
    return total


def test_each_token_is_the_sum_of_what_is_known_of_it(embeddings, make_batch):
    batch = make_batch([3, 0, 20], [1, 2, 0], [2, 1, 0])
    tokens = embeddings(batch)
    for stream_index, name in enumerate(("consumption", "interaction")):
        stream, values = batch.streams[stream_index], tokens.histories[name].values_TD
        bounds = stream.offsets_B1.tolist()
        assert values.shape == (bounds[-1], 16)
        for request in range(3):
            for position, token in enumerate(range(bounds[request], bounds[request + 1])):
                age_ms = int(batch.request_ms_B[request] - stream.timestamp_ms_T[token])
                item, author = stream.items_TF[token].tolist()
                surface, hour, gap = stream.contexts_TX[token].tolist()
                expected = rows(
                    embeddings,
                    item__item=item,
                    item__author=author,
                    context__surface=surface,
                    context__hour=hour,
                    context__gap=gap,
                    **{f"{name}__intensity": int(stream.intensity_T[token])},
                    **{f"{name}__position": sum(edge <= position for edge in POSITION_EDGES)},
                    **{f"{name}__age": sum(edge <= age_ms for edge in AGE_EDGES_MS)},
                )
                for bit in range(3):
                    if int(stream.action_mask_T[token]) >> bit & 1:
                        expected = expected + rows(embeddings, **{f"{name}__action": bit})
                torch.testing.assert_close(values[token], expected)
    for token in range(3):
        item, author = batch.candidates.items_CF[token].tolist()
        surface, hour = batch.candidates.contexts_CX[token].tolist()
        expected = rows(embeddings, item__item=item, item__author=author, context__surface=surface, context__hour=hour)
        torch.testing.assert_close(tokens.candidates.values_TD[token], expected)
    for request in range(3):
        user, level, city = batch.users_BF[request].tolist()
        torch.testing.assert_close(tokens.contextual.values_TD[2 * request], rows(embeddings, user__user=user))
        group = rows(embeddings, user__level=level, user__city=city)
        torch.testing.assert_close(tokens.contextual.values_TD[2 * request + 1], group)


def test_null_codes_give_zero_and_no_gradient(embeddings, make_batch):
    batch = make_batch([1], [0], [1])
    nothing = replace(
        batch.candidates,
        items_CF=torch.zeros_like(batch.candidates.items_CF),
        contexts_CX=torch.zeros_like(batch.candidates.contexts_CX),
    )
    tokens = embeddings(replace(batch, candidates=nothing, users_BF=torch.zeros_like(batch.users_BF)))
    assert (tokens.candidates.values_TD == 0).all()
    assert (tokens.contextual.values_TD == 0).all()
    before = {name: weight[0].clone() for name, weight in embeddings.tables.weights().items()}
    embeddings.tables.set_learning_rate(0.1)
    (tokens.candidates.values_TD.sum() + tokens.contextual.values_TD.sum()).backward()
    for name, weight in embeddings.tables.weights().items():
        assert torch.equal(weight[0], before[name]), name


def test_labels_are_not_an_input(embeddings, make_batch):
    batch = make_batch([3], [2], [4])
    flipped = replace(
        batch.candidates,
        action_mask_C=~batch.candidates.action_mask_C,
        watch_ratio_C=1 - batch.candidates.watch_ratio_C,
    )
    found = embeddings(replace(batch, candidates=flipped)).candidates.values_TD
    assert torch.equal(found, embeddings(batch).candidates.values_TD)


def test_row_used_in_both_streams_and_a_candidate_gets_one_adagrad_update(embeddings, make_batch):
    batch = make_batch([1], [1], [1])
    item = torch.tensor([[7, 0]], dtype=torch.int32)
    streams = tuple(replace(stream, items_TF=item) for stream in batch.streams)
    batch = replace(batch, streams=streams, candidates=replace(batch.candidates, items_CF=item))
    before = embeddings.tables.weights()["item.item"].clone()
    embeddings.tables.set_learning_rate(0.5)
    tokens = embeddings(batch)
    gradient = torch.linspace(-1.0, 2.0, 16)
    loss = (tokens.candidates.values_TD + sum(h.values_TD for h in tokens.histories.values())) @ gradient
    loss.sum().backward()
    total = 3 * gradient
    mean_square = total.square().mean()
    expected = before[7] - 0.5 * total / mean_square.sqrt()
    after = embeddings.tables.weights()["item.item"]
    torch.testing.assert_close(after[7], expected)
    torch.testing.assert_close(embeddings.tables.accumulators()["item.item"][7], mean_square)
    untouched = torch.arange(40) != 7
    assert torch.equal(after[untouched], before[untouched])


@pytest.mark.parametrize("code", [-1, 40])
def test_a_code_outside_its_table_is_refused(embeddings, make_batch, code):
    batch = make_batch([2], [0], [1])
    items = batch.candidates.items_CF.clone()
    items[0, 0] = code
    with pytest.raises(RuntimeError, match=r"outside its table.*item\.item"):
        embeddings(replace(batch, candidates=replace(batch.candidates, items_CF=items)))


@pytest.mark.parametrize("edges", [POSITION_EDGES, AGE_EDGES_MS])
def test_bucket_edges_ascend(edges):
    assert list(edges) == sorted(set(edges))


def test_a_table_per_field_that_the_configuration_uses(make_config, spec):
    one = make_config(
        contextual=[["level"]], streams={"interaction": make_config().streams["interaction"].model_dump()}
    )
    names = [field.name for field in table_fields(one, spec)]
    assert names == [
        "item.item",
        "item.author",
        "user.level",
        "context.surface",
        "context.hour",
        "context.gap",
        "interaction.action",
        "interaction.intensity",
        "interaction.position",
        "interaction.age",
    ]
