import math
from itertools import combinations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dcdt.evaluation.duplicates import closest_pairs, confusion


@given(st.integers(0, 999), st.integers(2, 12), st.integers(1, 6))
def test_closest_pairs_by_brute_force(seed, n, k):
    vectors = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    cosine = torch.nn.functional.cosine_similarity(vectors.unsqueeze(1), vectors.unsqueeze(0), dim=-1)
    nearest = {
        tuple(sorted((row, max((o for o in range(n) if o != row), key=lambda o: cosine[row, o])))) for row in range(n)
    }
    expected = sorted(nearest, key=lambda pair: -cosine[pair])[:k]
    found = [tuple(pair) for pair in closest_pairs(vectors, k).tolist()]
    assert [float(cosine[pair]) for pair in found] == [float(cosine[pair]) for pair in expected]
    assert found[0] == expected[0] == max(combinations(range(n), 2), key=lambda pair: cosine[pair])


def test_one_video_has_no_pair():
    assert closest_pairs(torch.ones(1, 3), 4).shape == (0, 2)


@given(st.integers(0, 999))
def test_confusion_by_brute_force(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(6, 5, generator=generator)
    scores[:, 4] = float("-inf")  # no candidate
    positive = torch.rand(6, 5, generator=generator) < 0.4
    videos = torch.tensor([3, 0, 4])
    share, number = confusion(scores, positive, videos)
    for row, answer in enumerate(videos.tolist()):
        for column, other in enumerate(videos.tolist()):
            asked = [q for q in range(6) if positive[q, answer] and not positive[q, other] and answer != 4]
            assert number[row, column] == len(asked)
            above = sum(bool(scores[q, other] > scores[q, answer]) for q in asked)
            assert math.isnan(share[row, column]) if not asked else abs(share[row, column] - above / len(asked)) < 1e-6
