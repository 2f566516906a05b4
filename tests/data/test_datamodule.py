import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from support import prepare, related_sets

from dcdt.data import datamodule
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import IndexBatches, Positions, RankingDataModule, side_tensors
from dcdt.data.tables import pad_lists
from dcdt.samplers.base import Sampler
from dcdt.samplers.config import RandomSamplerConfig
from dcdt.samplers.pool import training_pool
from dcdt.samplers.random import RandomSampler
from dcdt.utils.errors import UserError

SPLITS = [SplitConfig("query", 0, 10, "all"), SplitConfig("video", 0, 10, "all")]


class Counting(Sampler):
    """A sampler whose negatives are random numbers."""

    negatives = 3

    def __init__(self, n):
        self.n = n

    def draw(self, generator):
        return torch.randint(1000, (self.n, self.negatives), generator=generator)


def batches(epoch=0, seed=0, n=50, batch_size=16):
    pairs = torch.arange(2 * n).reshape(n, 2)
    return IndexBatches(pairs, Counting(n), batch_size, seed, lambda: epoch, torch.device("cpu"))


def stacked(loader):
    return torch.cat([torch.column_stack([batch["query"], batch["video"], batch["negatives"]]) for batch in loader])


def test_every_pair_stands_in_an_epoch_once():
    loader = batches()
    rows = stacked(loader)
    assert rows.shape == (50, 5)
    assert sorted(rows[:, 0].tolist()) == list(range(0, 100, 2))
    assert (rows[:, 1] == rows[:, 0] + 1).all()
    assert [len(batch["query"]) for batch in loader] == [16, 16, 16, 2]
    assert len(loader) == 4


@pytest.mark.parametrize(("n", "batch_size", "length"), [(1, 16, 1), (16, 16, 1), (17, 16, 2), (50, 1, 50)])
def test_the_number_of_batches(n, batch_size, length):
    loader = batches(n=n, batch_size=batch_size)
    assert len(loader) == len(list(loader)) == length


def test_an_epoch_depends_on_seed_and_number_alone():
    loader = batches(epoch=3, seed=5)
    first = stacked(loader)
    torch.manual_seed(99)
    stacked(batches(epoch=1, seed=5))
    assert torch.equal(stacked(loader), first)
    assert torch.equal(stacked(batches(epoch=3, seed=5)), first)
    assert not torch.equal(stacked(batches(epoch=4, seed=5)), first)
    assert not torch.equal(stacked(batches(epoch=3, seed=6)), first)
    assert not torch.equal(stacked(batches(epoch=2, seed=6)), first)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    stacked(batches())
    assert torch.equal(torch.get_rng_state(), before)


def test_order_and_negatives_change_from_epoch_to_epoch():
    rows = [stacked(batches(epoch)) for epoch in range(3)]
    for one, other in pairwise(rows):
        assert not torch.equal(one[:, 0], other[:, 0])
        assert not torch.equal(one[one[:, 0].argsort(), 2:], other[other[:, 0].argsort(), 2:])


@pytest.mark.parametrize("config", SPLITS, ids=lambda config: config.name)
def test_side_tensors_by_brute_force(small, config):
    made = prepare(small, config)
    collection, related = made.collection, related_sets(made.collection)
    grades = {(q, v): g for q, v, g in zip(*vars(collection.judgments).values(), strict=True)}
    for name, side in made.split.sides.items():
        found = side_tensors(name, side, collection)
        allowed = made.split.test.candidates if name == "test_all" else side.candidates
        assert found.queries.tolist() == side.queries.tolist()
        assert torch.equal(found.candidates, torch.from_numpy(side.candidates))
        for at, query in enumerate(side.queries):
            judged = {video for video in related[query] if allowed[video]}
            listed = {video: grade for video, grade in zip(found.judged[at], found.grades[at], strict=True) if grade}
            assert {int(video): grade for video, grade in listed.items()} == {v: grades[query, v] for v in judged}
            assert sorted(found.judged[at].tolist()) == [-1] * (found.judged.shape[1] - len(judged)) + sorted(judged)
            removed = {video for video in related[query] if side.candidates[video] and video not in judged}
            assert {video for video in found.removed[at].tolist() if video >= 0} == removed
    assert (found.removed >= 0).any() == (config.name == "video")


def test_pairs_are_positions_and_rows(small):
    made = prepare(small, SPLITS[0])
    side, pairs = made.split.test, made.pairs["test"]
    found = side_tensors("test", side, made.collection, pairs).pairs
    assert np.array_equal(side.queries[found[:, 0]], pairs.query)
    assert np.array_equal(found[:, 1:], np.column_stack([pairs.video, pairs.label]))


def test_the_module_has_every_side(small):
    made = prepare(small, SPLITS[1])
    sampler = RandomSampler(RandomSamplerConfig("random", 2), training_pool(made.collection, made.split), made.tables)
    data = RankingDataModule(made.collection, made.split, made.pairs, sampler, 16, 0, ks=[1, 2])
    assert list(data.sides) == ["val", "test", "test_all"]
    assert data.sides["test_all"].pairs is None
    assert data.ks == (1, 2)
    assert [len(torch.cat(list(loader))) for loader in data.test_dataloader()] == [
        len(side.queries) for side in made.split.sides.values()
    ]
    assert torch.cat(list(data.val_dataloader())).tolist() == list(range(len(made.split.val.queries)))


def test_a_cut_off_above_the_number_of_candidates_is_an_error(small):
    made = prepare(small, SPLITS[1])
    n = int(made.split.test.candidates.sum())
    assert n < made.split.val.candidates.sum()
    RankingDataModule(made.collection, made.split, made.pairs, None, 16, 0, ks=[1, n])
    with pytest.raises(UserError, match=f"ks holds {n + 1}, but side 'test' ranks {n} videos only"):
        RankingDataModule(made.collection, made.split, made.pairs, None, 16, 0, ks=[n + 1, 1])


@pytest.mark.parametrize(("cells", "longest"), [(1, 1), (20, 1), (100, 5), (2**24, 1024)])
def test_chunks_bound_the_score_matrix(small, monkeypatch, cells, longest):
    monkeypatch.setattr(datamodule, "MAX_CHUNK_SCORES", cells)
    made = prepare(small, SPLITS[0])
    side = side_tensors("test", made.split.test, made.collection)
    loader = Positions(side)
    assert torch.cat(list(loader)).tolist() == list(range(len(side.queries)))
    assert max(map(len, loader)) <= longest
    assert len(loader) == math.ceil(len(side.queries) / longest)


def test_padding():
    assert pad_lists([[1, 2], [], [3]], -1).tolist() == [[1, 2], [-1, -1], [3, -1]]
    assert pad_lists([[1.0], [2.0]], 0.0).dtype == torch.float32
    assert pad_lists([[], []], -1).shape == (2, 0)
    assert pad_lists([], -1).shape == (0, 0)
