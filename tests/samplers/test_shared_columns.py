"""Samplers whose columns all queries of a batch share: in_batch and catalogue."""

import math
from itertools import combinations

import pytest
import torch
from support import prepare
from test_samplers import SPLITS, allowed_sets, by_split, generator

from dcdt.losses.config import InfoNCEConfig
from dcdt.losses.infonce import InfoNCELoss
from dcdt.samplers.catalogue import CatalogueSampler
from dcdt.samplers.config import CatalogueSamplerConfig, InBatchSamplerConfig
from dcdt.samplers.in_batch import InBatchSampler
from dcdt.samplers.pool import TrainingPool, training_pool


def in_batch(pool, logq=False):
    return InBatchSampler(InBatchSamplerConfig("in_batch", logq), pool, None)


def catalogue(pool):
    return CatalogueSampler(CatalogueSamplerConfig("catalogue"), pool, None)


def epoch(sampler, seed=0, size=8):
    """The batches of an epoch, as the DataModule makes them."""
    rows = torch.cat([sampler.pairs, sampler.draw(generator(seed))], dim=1)
    assert rows.shape == (len(sampler.pairs), 2)
    rows = rows[torch.randperm(len(rows), generator=generator(seed))]
    return [(part, sampler.batch(part)) for part in rows.split(size)]


@by_split
@pytest.mark.parametrize("make", [in_batch, catalogue])
def test_the_cells_of_every_batch_by_brute_force(small, config, make):
    made = prepare(small, config)
    pool, allowed = training_pool(made.collection, made.split), allowed_sets(made.collection, made.split)
    positives = {}
    for query, video in pool.pairs.tolist():
        positives.setdefault(query, set()).add(video)
    masked = several = 0
    for rows, batch in epoch(make(pool)):
        columns = batch["columns"].tolist()
        assert batch["query"].tolist() == rows[:, 0].tolist()
        shown = pool.candidates.tolist() if make is catalogue else sorted(set(rows[:, 1].tolist()))
        assert columns == shown
        assert set(rows[:, 1].tolist()) <= set(columns)
        for query, label, weight in zip(rows[:, 0].tolist(), batch["label"], batch["weight"], strict=True):
            found = {video for video, value in zip(columns, label.tolist(), strict=True) if value == 1}
            counted = {video for video, value in zip(columns, weight.tolist(), strict=True) if value == 1}
            assert found == positives[query] & set(columns)
            assert counted - found == allowed[query] & set(columns)
            assert set(weight.tolist()) <= {0, 1} and set(label.tolist()) <= {0, 1}
            masked += len(columns) - len(counted)
            several += len(found) > 1
    assert masked > 0, "no related video was there to be masked"
    assert several > 0, "no query with two positives was there"


def test_a_query_with_several_positives_has_them_all(small):
    pairs = torch.tensor([[0, 1], [0, 3], [2, 3], [2, 0]])
    pool = TrainingPool(pairs, torch.tensor([0, 2]), torch.tensor([0, 0, 1, 1]), torch.arange(5), FORBIDDEN)
    [(_, batch)] = epoch(in_batch(pool))
    assert batch["columns"].tolist() == [0, 1, 3]
    by_query = dict(zip(batch["query"].tolist(), batch["label"].tolist(), strict=True))
    assert by_query == {0: [0, 1, 1], 2: [1, 0, 1]}
    rows, batch = epoch(catalogue(pool))[0]
    assert sorted(rows[:, 0].tolist()) == [0, 2]
    by_query = dict(zip(batch["query"].tolist(), batch["weight"].tolist(), strict=True))
    assert by_query == {0: [1, 1, 0, 1, 1], 2: [1, 1, 1, 1, 1]}


FORBIDDEN = torch.tensor([[1, 2, 3], [0, 3, 5]])


@by_split
def test_an_epoch_of_the_catalogue_has_every_query_once(small, config):
    made = prepare(small, config)
    pool = training_pool(made.collection, made.split)
    sampler = catalogue(pool)
    assert sampler.pairs[:, 0].tolist() == pool.queries.tolist()
    assert {tuple(pair) for pair in sampler.pairs.tolist()} <= {tuple(pair) for pair in pool.pairs.tolist()}


def asked_for(counts):
    """A pool of single-positive queries in which video v is asked for counts[v] times."""
    videos = torch.tensor([video for video, count in enumerate(counts) for _ in range(count)])
    n = len(videos)
    forbidden = videos.unsqueeze(1)
    pairs = torch.column_stack([torch.arange(n), videos])
    return TrainingPool(pairs, torch.arange(n), torch.arange(n), torch.arange(len(counts)), forbidden)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
def test_the_chance_of_a_column_by_counting_batches(size):
    pool = asked_for([5, 1, 2, 0, 1])
    chance = in_batch(pool).inclusion_probability(size)
    others = range(1, 9)  # with the first query, whose positive is video 0
    batches = list(combinations(others, size - 1))
    for video in (1, 2, 3, 4):
        there = sum(any(pool.pairs[row, 1] == video for row in batch) for batch in batches)
        assert chance[video].item() == pytest.approx(there / len(batches), abs=1e-9)


@pytest.mark.parametrize("size", [3, 5, 9])
def test_the_corrected_sum_of_negatives_is_that_of_all_videos_asked_for(size):
    """Over all batches with a query, the mean of sum w exp(s) over its negatives is the sum over the catalogue."""
    pool = asked_for([3, 4, 1, 1])
    sampler, score = in_batch(pool, logq=True), torch.tensor([0.7, -0.4, 1.3, 0.2]).double()
    sums = []
    for others in combinations(range(1, 9), size - 1):
        batch = sampler.batch(pool.pairs[[0, *others]])
        counts = batch["weight"][0] * (1 - batch["label"][0])
        sums.append((counts.double() * score[batch["columns"]].exp()).sum().item())
    assert sum(sums) / len(sums) == pytest.approx(score[1:].exp().sum().item(), rel=1e-5)


def test_a_popular_video_is_pushed_less_with_the_correction():
    """The sign: of two negatives that score alike, the often asked one has the smaller gradient."""
    pool = asked_for([3, 6, 1])
    rows = pool.pairs[[0, 3, 9]]
    loss = InfoNCELoss(InfoNCEConfig("infonce", "each", 1.0, False))
    pushes = {}
    for logq in (False, True):
        batch = in_batch(pool, logq).batch(rows)
        similarity = torch.zeros(3, 3, requires_grad=True)
        loss(similarity, batch["label"], batch["weight"])[0].backward()
        pushes[logq] = similarity.grad[0]
    assert pushes[False][1] == pushes[False][2] > 0
    assert pushes[True][1] < pushes[True][2]
    chance = in_batch(pool).inclusion_probability(3)
    ratio = (pushes[True][1] / pushes[True][2]).item()
    assert math.log(ratio) == pytest.approx(math.log(chance[2]) - math.log(chance[1]), rel=1e-5)


def test_a_positive_and_a_masked_cell_are_not_corrected(small):
    made = prepare(small, SPLITS[0])
    pool = training_pool(made.collection, made.split)
    for (_, plain), (_, corrected) in zip(epoch(in_batch(pool)), epoch(in_batch(pool, logq=True)), strict=True):
        kept = (plain["label"] > 0) | (plain["weight"] == 0)
        assert torch.equal(plain["weight"][kept], corrected["weight"][kept])
        assert (corrected["weight"][~kept] > 1).all()
        assert corrected["weight"].isfinite().all()
