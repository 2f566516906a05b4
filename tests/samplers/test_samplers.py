from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import prepare, related_sets

from dcdt.data.config import SplitConfig
from dcdt.data.tables import Tables
from dcdt.data.types import Judgments, normalise_text
from dcdt.samplers.config import HardSamplerConfig, RandomSamplerConfig
from dcdt.samplers.hard import HardSampler
from dcdt.samplers.mining import mine_hard_negatives
from dcdt.samplers.pool import TrainingPool, draw_distinct, training_pool
from dcdt.samplers.random import RandomSampler
from dcdt.utils.errors import UserError

SPLITS = [SplitConfig("query", 0, 10, "all"), SplitConfig("video", 1, 10, "all")]
by_split = pytest.mark.parametrize("config", SPLITS, ids=lambda config: config.name)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def allowed_sets(collection, split):
    """For each training query: candidates that are unrelated to it and have the text of no related video."""
    texts = [normalise_text(text) for text in collection.videos.texts]
    candidates = np.flatnonzero(split.train.candidates)
    sets = {}
    for query, related in enumerate(related_sets(collection)):
        taken = {texts[video] for video in related}
        sets[query] = {int(video) for video in candidates if texts[video] not in taken}
    return sets


@by_split
def test_the_pool_by_brute_force(small, config):
    made = prepare(small, config)
    pool, allowed = training_pool(made.collection, made.split), allowed_sets(made.collection, made.split)
    assert pool.candidates.tolist() == np.flatnonzero(made.split.train.candidates).tolist()
    assert torch.equal(pool.queries[pool.owner], pool.pairs[:, 0])
    assert sorted(set(pool.pairs[:, 0].tolist())) == pool.queries.tolist()
    for query, forbidden, free in zip(pool.queries.tolist(), pool.forbidden, pool.free, strict=True):
        kept = set(range(len(pool.candidates))) - set(forbidden.tolist())
        assert set(pool.candidates[sorted(kept)].tolist()) == allowed[query]
        assert free == len(allowed[query])
        assert forbidden.tolist() == sorted(forbidden.tolist())
    related = related_sets(made.collection)
    twins = [len(related[query] - allowed[query]) < len(pool.candidates) - len(allowed[query]) for query in allowed]
    assert any(twins)  # some video was taken out for its text alone


@by_split
def test_random_negatives_are_all_unrelated_candidates_and_nothing_else(small, config):
    made = prepare(small, config)
    pool, allowed = training_pool(made.collection, made.split), allowed_sets(made.collection, made.split)
    sampler = RandomSampler(RandomSamplerConfig("random", 4), pool, made.tables)
    drawn = torch.cat([sampler.draw(generator(seed)) for seed in range(60)], dim=1)  # (P, 60 * 4)
    assert sampler.draw(generator()).shape == (len(pool.pairs), 4)
    for query, row in zip(pool.pairs[:, 0].tolist(), drawn.tolist(), strict=True):
        assert set(row) == allowed[query]


def hard(made, pool, **changes):
    values = {"negatives": 4, "pool_fraction": 0.3, "pool_limit": 200, **changes}
    return HardSampler(HardSamplerConfig("hard", **values), pool, made.tables)


@by_split
@pytest.mark.parametrize(("share", "limit"), [(0.3, 200), (0.3, 3), (0.01, 200), (1.0, 200), (1.0, 7)])
def test_hard_negatives_are_the_most_similar_unrelated_videos(small, config, share, limit):
    made = prepare(small, config)
    pool, allowed = training_pool(made.collection, made.split), allowed_sets(made.collection, made.split)
    sampler = hard(made, pool, pool_fraction=share, pool_limit=limit)
    drawn = torch.cat([sampler.draw(generator(seed)) for seed in range(60)], dim=1)
    cosine = made.tables.queries @ made.tables.frozen.T
    for query, row in zip(pool.pairs[:, 0].tolist(), drawn.tolist(), strict=True):
        ranked = sorted(allowed[query], key=lambda video: -cosine[query, video])
        size = min(limit, max(1, round(share * len(ranked))))
        assert set(row) == set(ranked[:size])


@by_split
@pytest.mark.parametrize("kind", ["random", "hard"])
def test_negatives_of_a_pair_are_distinct_and_drawn_anew(small, config, kind):
    made = prepare(small, config)
    pool = training_pool(made.collection, made.split)
    plain = RandomSampler(RandomSamplerConfig("random", 4), pool, made.tables)
    sampler = plain if kind == "random" else hard(made, pool, pool_fraction=0.6)
    first, second = sampler.draw(generator(1)), sampler.draw(generator(2))
    size = pool.free if kind == "random" else sampler.sizes
    wide = size[pool.owner] >= 4
    assert all(len(set(row)) == 4 for row in first[wide].tolist())
    assert not torch.equal(first, second)
    assert torch.equal(first, sampler.draw(generator(1)))


def test_a_query_related_to_every_video_is_an_error(small):
    made = prepare(small, SPLITS[0])
    old, query, n = made.collection.judgments, int(made.split.pairs[0, 0]), len(made.collection.videos)
    kept = old.where(old.query != query)
    judgments = Judgments(
        np.append(kept.query, np.full(n, query)),
        np.append(kept.video, np.arange(n)),
        np.append(kept.grade, np.ones(n, np.float32)),
    )
    with pytest.raises(UserError, match=f"query 'q{query}' is related to all {n} videos of training"):
        training_pool(replace(made.collection, judgments=judgments), made.split)


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 12), st.integers(0, 1000))
def test_draws_are_distinct_and_below_their_count(counts, k, seed):
    drawn = draw_distinct(torch.tensor(counts), k, generator(seed))
    assert drawn.shape == (len(counts), k)
    for count, row in zip(counts, drawn.tolist(), strict=True):
        assert all(0 <= number < count for number in row)
        assert len(set(row)) == min(count, k)  # a short row holds every number


@pytest.mark.parametrize(("count", "k"), [(4, 2), (5, 3), (6, 1), (5, 4)])
def test_every_subset_is_drawn_equally_often(count, k):
    n = 20_000
    drawn = draw_distinct(torch.full((n,), count), k, generator(7))
    found = Counter(tuple(sorted(row)) for row in drawn.tolist())
    subsets = list(combinations(range(count), k))
    expected = n / len(subsets)
    chi_square = sum((found[subset] - expected) ** 2 / expected for subset in subsets)
    freedom = len(subsets) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 4  # far in the tail


@given(*(st.integers(1, most) for most in (12, 8, 12, 5, 13)), st.integers(0, 1000))
def test_mining_by_brute_force(n_videos, n_queries, size, chunk, block, seed):
    rng = np.random.default_rng(seed)
    queries, videos = (torch.from_numpy(rng.normal(size=(n, 4))) for n in (n_queries, n_videos))
    forbidden = [sorted(rng.choice(n_videos, rng.integers(n_videos), replace=False)) for _ in range(n_queries)]
    width = max(map(len, forbidden))
    padded = torch.tensor([[*part, *[n_videos] * (width - len(part))] for part in forbidden], dtype=torch.int64)
    rows = torch.from_numpy(np.sort(rng.permutation(2 * n_videos)[:n_videos]))  # the others are no candidates
    table = torch.from_numpy(rng.normal(size=(2 * n_videos, 4)))
    table[rows] = videos
    mined = mine_hard_negatives(queries, table, rows, padded.reshape(n_queries, width), size, chunk, block)
    assert mined.shape == (n_queries, min(size, n_videos))
    for query, taken, row in zip(queries, forbidden, mined.tolist(), strict=True):
        scores = videos @ query
        free = sorted(set(range(n_videos)) - set(taken), key=lambda video: -scores[video])
        assert row[: len(free)] == free[:size]


def test_the_frozen_vectors_decide_whatever_the_fields():
    tables = Tables(torch.eye(3)[:1], torch.eye(3)[None, [2, 1, 0]], torch.eye(3), ["tags"])
    pool = TrainingPool(
        torch.tensor([[0, 2]]), torch.tensor([0]), torch.tensor([0]), torch.tensor([0, 1]), torch.full((1, 1), 2)
    )
    sampler = HardSampler(HardSamplerConfig("hard", 1, 0.5, 200), pool, tables)
    assert sampler.draw(generator()).tolist() == [[0]]
