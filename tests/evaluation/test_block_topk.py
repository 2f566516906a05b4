import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcdt.evaluation import ranking
from dcdt.evaluation.block_topk import block_topk
from dcdt.evaluation.ranking import count_true, judged_ranks, ranks_and_ties, top_k


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3000), st.integers(1, 40), st.integers(0, 10_000))
def test_top_is_the_head_of_a_sort(n_rows, n_columns, k, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64)
    k = min(k, n_columns)
    values, columns = block_topk(scores, k)
    expected = scores.sort(dim=1, descending=True)
    assert torch.equal(values, expected.values[:, :k])
    assert torch.equal(columns, expected.indices[:, :k])


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_top_among_equal_scores_has_the_right_values_and_each_column_once(levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (5, 4000), generator=generator).double()
    scores[0, 10:] = -math.inf
    values, columns = block_topk(scores, 30)
    assert torch.equal(values, scores.sort(dim=1, descending=True).values[:, :30])
    assert torch.equal(values, scores.gather(1, columns))
    assert all(len(set(row)) == 30 for row in columns.tolist())


def test_top_looks_at_blocks_where_columns_are_many(monkeypatch):
    plain = torch.Tensor.topk
    seen = []
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda self, *given, **more: seen.append(self.shape[1]) or plain(self, *given, **more)
    )
    block_topk(torch.randn(2, 10_000), 10)
    assert len(seen) == 2 and max(seen) < 1000


@pytest.mark.parametrize("width", [0, 1, 7, 8, 9, 64, 2039, 2040, 2041, 2048, 5000])
def test_count_of_a_mask(width):
    generator = torch.Generator().manual_seed(width)
    for share in (0.0, 0.3, 1.0):
        mask = torch.rand(3, width, generator=generator) < share
        assert torch.equal(count_true(mask), mask.sum(1))
        assert torch.equal(count_true(mask[:, ::2]), mask[:, ::2].sum(1))  # not contiguous


@pytest.mark.parametrize("levels", [3, 400, 10**6])
@pytest.mark.parametrize("masked", [False, True])
def test_counting_gives_what_order_keys_give(levels, masked):
    """The fast path against the plain one, on catalogues large enough for blocks, with many, some and no ties."""
    generator = torch.Generator().manual_seed(levels)
    scores = (torch.randint(levels, (6, 6000), generator=generator) / levels).float()
    scores[1, ::3], scores[2, 5] = -math.inf, math.inf
    judged = torch.stack([torch.randperm(6000, generator=generator)[:9] for _ in range(6)])
    judged[:, 4] = -1
    candidates = torch.rand(6000, generator=generator) < 0.6
    candidates[judged[judged >= 0]] = True
    mask = candidates if masked else None
    order = torch.randperm(6000, generator=generator)
    keys = ranking._order_keys(scores, order, mask)
    own = keys.gather(1, judged.clamp(min=0))
    expected = (1 + (keys.unsqueeze(1) > own.unsqueeze(2)).sum(2)).masked_fill(judged < 0, 0)
    ranks, tied = ranks_and_ties(scores, judged, order, mask)
    assert torch.equal(ranks, expected)
    assert torch.equal(ranks, judged_ranks(scores, judged, order, mask))
    shown = candidates if masked else torch.ones_like(candidates)
    for row, videos in enumerate(judged.tolist()):
        for column, video in enumerate(videos):
            others = int((scores[row, shown] == scores[row, video]).sum()) - 1
            assert bool(tied[row, column]) == (video >= 0 and others > 0)
    assert torch.equal(top_k(scores, 50, order, mask)[1], keys.topk(50, dim=1).indices)
