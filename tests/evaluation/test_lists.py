import math

import numpy as np
import pytest

from dcdt.evaluation.lists import list_metrics


def test_lists_are_measured_as_by_a_loop():
    rng = np.random.default_rng(0)
    top = np.stack([rng.permutation(40)[:5] for _ in range(6)])  # (6, 5)
    lengths = [5, 3, 1, 5, 0, 2]
    watchers, n_learners = rng.integers(0, 9, 40), 11
    listed, shares, bits = set(), [], []
    for row, length in zip(top.tolist(), lengths, strict=True):
        videos = row[:length]
        listed |= set(videos)
        counts = [int(watchers[video]) for video in videos]
        shares.append(sum(count / n_learners for count in counts) / max(length, 1))
        bits.append(sum(-math.log2((count + 1) / (n_learners + 1)) for count in counts) / max(length, 1))
    is_ranked = np.arange(5) < np.array(lengths)[:, None]
    coverage, popularity, novelty = list_metrics(top, is_ranked, watchers, n_learners, 20)
    assert coverage == len(listed) / 20
    assert popularity == pytest.approx(sum(shares) / 6)
    assert novelty == pytest.approx(sum(bits) / 6)
