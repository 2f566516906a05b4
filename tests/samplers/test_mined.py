"""Samplers that mine: window, dynamic_hard and mixed."""

import numpy as np
import pytest
import torch
from support import prepare
from test_samplers import SPLITS, allowed_sets, by_split, generator

from dcdt.samplers import dynamic_hard, window
from dcdt.samplers.config import DynamicHardSamplerConfig, MixedSamplerConfig, WindowSamplerConfig
from dcdt.samplers.dynamic_hard import DynamicHardSampler
from dcdt.samplers.mixed import MixedSampler
from dcdt.samplers.pool import training_pool
from dcdt.samplers.window import WindowSampler


def parts(small, config):
    made = prepare(small, config)
    return made, training_pool(made.collection, made.split), allowed_sets(made.collection, made.split)


def drawn_sets(sampler, times=60):
    drawn = torch.cat([sampler.draw(generator(seed)) for seed in range(times)], dim=1)
    return [set(row) for row in drawn.tolist()]


@by_split
@pytest.mark.parametrize(("start", "size", "guard"), [(0, 5, 1.0), (3, 4, 1.0), (2, 6, 0.5), (0, 3, 0.2), (50, 3, 1.0)])
@pytest.mark.parametrize("cells", [2**22, 50])
def test_windows_and_what_was_rejected_by_brute_force(small, monkeypatch, config, start, size, guard, cells):
    monkeypatch.setattr(window, "MAX_CHUNK_SCORES", cells)  # 50: a few queries at a time
    made, pool, allowed = parts(small, config)
    sampler = WindowSampler(WindowSamplerConfig("window", 4, start, size, guard), pool, made.tables)
    cosine = made.tables.queries @ made.tables.frozen.T
    rejected = dict.fromkeys(("related", "guard", "rank", "unguarded"), 0)
    for (query, positive), found in zip(pool.pairs.tolist(), drawn_sets(sampler), strict=True):
        ranked = sorted(allowed[query], key=lambda video: -cosine[query, video])
        own = cosine[query, positive]
        kept = []
        rejected["related"] += len(pool.candidates) - len(ranked)
        for rank, video in enumerate(ranked):
            if cosine[query, video] > own - (1 - guard) * abs(own):
                rejected["guard"] += 1
            elif rank < start and rank < len(ranked) - 1:  # the last one is never left out for its rank
                rejected["rank"] += 1
            else:
                kept.append(video)
        rejected["unguarded"] += not kept
        assert found == set(kept[:size] or ranked[-1:])
        assert not found - allowed[query]
    assert sampler.rejected == rejected
    assert sampler.statistics() == {f"window/{rule}": number for rule, number in rejected.items()}
    if guard == 0.2:
        assert rejected["guard"] > 0


def dynamic(made, pool, **changes):
    values = {"negatives": 4, "pool_fraction": 0.3, "pool_limit": 200, "warm_up": 2, "every": 3, **changes}
    return DynamicHardSampler(DynamicHardSamplerConfig("dynamic_hard", **values), pool, made.tables)


@by_split
@pytest.mark.parametrize("chunk", [256, 3])
def test_mining_again_takes_what_scores_highest_now(small, monkeypatch, config, chunk):
    monkeypatch.setattr(dynamic_hard, "QUERY_CHUNK", chunk)
    made, pool, allowed = parts(small, config)
    sampler = dynamic(made, pool)
    table = torch.from_numpy(np.random.default_rng(1).normal(size=(len(made.tables.queries), len(made.tables.frozen))))
    frozen = made.tables.queries @ made.tables.frozen.T

    def wanted(scores):
        sets = []
        for query in pool.pairs[:, 0].tolist():
            ranked = sorted(allowed[query], key=lambda video: -scores[query, video])
            sets.append(set(ranked[: max(1, round(0.3 * len(ranked)))]))
        return sets

    assert drawn_sets(sampler) == wanted(frozen) != wanted(table)
    sampler.refresh(lambda rows: table[rows])
    assert drawn_sets(sampler) == wanted(table)


def test_mining_is_due_after_the_warm_up_and_every_so_many_epochs(small):
    made, pool, _ = parts(small, SPLITS[0])
    sampler = dynamic(made, pool)
    assert [epoch for epoch in range(12) if sampler.should_refresh(epoch)] == [2, 5, 8, 11]


@by_split
def test_mixed_negatives_are_hard_ones_and_any_others(small, config):
    made, pool, allowed = parts(small, config)
    sampler = MixedSampler(MixedSamplerConfig("mixed", 4, 0.3, 200, 0.5), pool, made.tables)
    cosine = made.tables.queries @ made.tables.frozen.T
    drawn = torch.stack([sampler.draw(generator(seed)) for seed in range(120)], dim=1)  # (P, 120, 4)
    for query, rows in zip(pool.pairs[:, 0].tolist(), drawn, strict=True):
        ranked = sorted(allowed[query], key=lambda video: -cosine[query, video])
        hard = set(ranked[: max(1, round(0.3 * len(ranked)))])
        assert set(rows[:, :2].flatten().tolist()) == hard
        assert set(rows[:, 2:].flatten().tolist()) == allowed[query]  # also hard ones, where they are not drawn yet
        if len(hard) >= 2:
            assert all(len(set(row)) == 4 for row in rows.tolist())
    assert torch.equal(sampler.draw(generator(3)), sampler.draw(generator(3)))


@pytest.mark.parametrize(("share", "n_hard"), [(0.5, 2), (0.01, 1), (0.99, 3), (0.75, 3)])
def test_the_share_of_hard_negatives(small, share, n_hard):
    made, pool, _ = parts(small, SPLITS[0])
    sampler = MixedSampler(MixedSamplerConfig("mixed", 4, 0.3, 200, share), pool, made.tables)
    assert (sampler.hard.negatives, sampler.draw(generator()).shape[1]) == (n_hard, 4)


def test_the_random_ones_are_drawn_evenly_from_those_that_are_left(small):
    made, pool, allowed = parts(small, SPLITS[0])
    sampler = MixedSampler(MixedSamplerConfig("mixed", 3, 0.01, 1, 0.3), pool, made.tables)  # one hard video
    drawn = torch.cat([sampler.draw(generator(seed))[:, 1:] for seed in range(800)], dim=1)
    query, hard = int(pool.pairs[0, 0]), int(sampler.draw(generator())[0, 0])
    counts = drawn[0].bincount(minlength=20)
    others = sorted(allowed[query] - {hard})
    assert counts[hard] == 0
    expected = 1600 / len(others)
    chi_square = ((counts[others] - expected) ** 2 / expected).sum().item()
    freedom = len(others) - 1
    assert chi_square < freedom + 4 * (2 * freedom) ** 0.5 + 4  # far in the tail
