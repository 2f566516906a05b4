import io

import pytest
import torch
from torch.nn.functional import normalize

from baselines import single_tower
from baselines.config import SingleTowerConfig
from baselines.single_tower import MAX_BLOCK_NUMBERS, SingleTower, block_shape
from dcdt.data.tables import Tables
from dcdt.losses.config import ContrastiveConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.models.config import OptimizerConfig
from dcdt.models.query_batch import QueryBatch
from dcdt.samplers.base import explicit_batch

N_QUERIES, N_VIDEOS, WIDTH = 5, 13, 6


def make_model(n_fields=2, dropout=0.0, measure="distance", seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = normalize(torch.randn(N_QUERIES, 8, generator=generator), dim=-1)
    videos = normalize(torch.randn(n_fields, N_VIDEOS, 8, generator=generator), dim=-1)
    tables = Tables(queries, videos, videos.sum(0), ["title", "text", "tags"][:n_fields])
    torch.manual_seed(seed)
    loss = ContrastiveLoss(ContrastiveConfig("contrastive", margin=0.8, squared=False))
    loss.measure = measure
    config = SingleTowerConfig("single_tower", tables.fields, WIDTH, dropout)
    model = SingleTower(config, tables, loss, OptimizerConfig(1e-3, 0.01, "constant"))
    model.record_loss = lambda *args: None  # there is no trainer
    return model.eval()


def batch_of(model):
    queries = model.tables.queries
    return QueryBatch(queries, ["?"] * len(queries), [None] * len(queries), [None] * len(queries))


def naive(model, query, videos):
    """Score of one query vector and one video's field vectors, (F, D), by concatenation as the paper says it."""
    joined = [tower(torch.cat([query, video])) for tower, video in zip(model.towers, videos, strict=True)]
    return model.output(torch.cat(joined)).sigmoid().squeeze()


@pytest.mark.parametrize("n_fields", [1, 2, 3])
@pytest.mark.parametrize("cells", [1, 5 * 12, 40 * 12, 10**6])
def test_the_chunked_score_is_that_of_the_concatenation(monkeypatch, n_fields, cells):
    monkeypatch.setattr(single_tower, "MAX_BLOCK_NUMBERS", cells)
    model = make_model(n_fields).double()
    model.tables.to(dtype=torch.float64)
    videos = model.tables.videos.unbind(1)
    expected = torch.stack([naive(model, query, video) for query in model.tables.queries for video in videos])
    torch.testing.assert_close(model.score(batch_of(model)), expected.reshape(N_QUERIES, N_VIDEOS))


@pytest.mark.parametrize(("n_videos", "n_queries"), [(1_500, 300), (10_000, 1_000), (46, 300), (10**7, 1)])
@pytest.mark.parametrize("width", [512, 768, 2 * MAX_BLOCK_NUMBERS])
def test_no_block_of_pairs_is_larger_than_the_limit(n_videos, n_queries, width):
    rows, columns = block_shape(n_videos, width)
    assert rows >= 1 and 1 <= columns <= n_videos
    assert rows * columns * width <= max(MAX_BLOCK_NUMBERS, width)
    assert (rows + 1) * columns * width > MAX_BLOCK_NUMBERS  # and no smaller than need be


def test_no_hidden_tensor_is_larger_than_the_limit(monkeypatch):
    monkeypatch.setattr(single_tower, "MAX_BLOCK_NUMBERS", 40)
    model, sizes = make_model(), []
    model.dropout.register_forward_hook(lambda module, given, output: sizes.append(output.numel()))
    model.score(batch_of(model))
    assert 0 < max(sizes) <= 40
    assert sum(sizes) == N_QUERIES * N_VIDEOS * 2 * WIDTH


@pytest.mark.parametrize("measure", ["distance", "similarity"])
def test_the_loss_is_given_one_minus_the_score_as_distance(measure):
    model = make_model(measure=measure)
    place = torch.tensor([[0, 2, 1], [1, 1, 0]])
    rows, queries = torch.tensor([4, 7, 9]), torch.tensor([3, 1])
    given = model.match(model.tables.queries[queries], model.tables.videos[:, rows], place)
    scores = model.score(batch_of(model))[queries[:, None], rows[place]]
    torch.testing.assert_close(given, 1 - scores if measure == "distance" else scores)
    assert (scores > 0).all() and (scores < 1).all()


def test_a_training_step_is_equation_7():
    model = make_model()
    batch = explicit_batch(torch.tensor([[0, 3, 5, 12], [4, 3, 0, 7]]))
    losses = []
    for query, video, negatives in zip(*(batch[name] for name in ("query", "video", "negatives")), strict=True):
        for row, y in [(video, 1), *((negative, 0) for negative in negatives)]:
            d = 1 - naive(model, model.tables.queries[query], model.tables.videos[:, row])
            losses.append(y * d + (1 - y) * max(0.8 - d, 0) ** 2)
    torch.testing.assert_close(model.training_step(batch, 0), torch.stack(losses).mean())


def test_training_moves_the_positive_above_the_negatives():
    model = make_model(dropout=0.2).train()
    batch = explicit_batch(torch.tensor([[0, 3, 5, 12, 1]]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    scores = model.eval().score(batch_of(model))[0]
    assert scores[3] > 0.9
    assert scores[[5, 12, 1]].max() < 0.4


def test_dropout_is_for_training_alone():
    model = make_model(dropout=0.9)
    assert torch.equal(model.score(batch_of(model)), model.score(batch_of(model)))
    model.train()
    assert not torch.equal(model.score(batch_of(model)), model.score(batch_of(model)))


def test_nothing_can_be_computed_ahead():
    assert SingleTower.trained_by_epochs and not SingleTower.decoupled


def test_a_saved_model_scores_the_same():
    model, other = make_model(), make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert not torch.equal(other.score(batch_of(other)), model.score(batch_of(model)))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.score(batch_of(other)), model.score(batch_of(model)))
