import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels import AttentionMask, hstu_attention, hstu_attention_cached, lengths_to_offsets, split_jagged


def sequences(counts, num_contextual, seed=0):
    """Random q, k and v of requests [contextual | history | candidates], with their layout."""
    torch.manual_seed(seed)
    candidates_B = torch.tensor([c for _, c in counts])
    lengths_B = torch.tensor([h for h, _ in counts]) + num_contextual + candidates_B
    offsets_B1 = lengths_to_offsets(lengths_B)
    q, k = (torch.randn(int(lengths_B.sum()), 2, 5, dtype=torch.float64) for _ in range(2))
    return (q, k, torch.randn(len(q), 2, 3, dtype=torch.float64)), offsets_B1, candidates_B


counts = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5)


@given(counts=counts, num_contextual=st.integers(0, 2), axis=st.sampled_from(["queries", "keys"]))
def test_cached_candidates_equal_those_of_the_whole_sequence(counts, num_contextual, axis):
    qkv, offsets_B1, candidates_B = sequences(counts, num_contextual)
    whole = hstu_attention(
        *qkv,
        offsets_B1=offsets_B1,
        num_contextual=num_contextual,
        num_candidates_B=candidates_B,
        mask=AttentionMask(2, 1, axis),
        alpha=0.3,
        scale=0.25,
        impl="reference",
    )
    before_B = offsets_B1.diff() - candidates_B
    (_, q), (cache_k, k), (cache_v, v) = (split_jagged(x, offsets_B1, before_B) for x in qkv)
    cached = hstu_attention_cached(
        q,
        k,
        v,
        cache_k,
        cache_v,
        candidate_offsets_B1=lengths_to_offsets(candidates_B),
        cache_offsets_B1=lengths_to_offsets(before_B),
        alpha=0.3,
        scale=0.25,
        impl="reference",
    )
    torch.testing.assert_close(cached, split_jagged(whole, offsets_B1, before_B)[1])


def test_a_cache_of_other_heads_is_refused():
    (q, k, v), _, _ = sequences([(3, 1)], 0)
    offsets = torch.tensor([0, 4])
    with pytest.raises(ValueError, match=r"\(T, 2, 5\)"):
        hstu_attention_cached(
            q, k, v, k[:, :1], v[:, :1], candidate_offsets_B1=offsets, cache_offsets_B1=offsets, alpha=1.0, scale=1.0,
            impl="reference",
        )  # fmt: skip
