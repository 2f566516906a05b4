import pytest
import torch
from torch.nn.functional import normalize

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data.tables import Tables
from dcdt.losses.config import InfoNCEConfig, TripletConfig
from dcdt.losses.infonce import InfoNCELoss
from dcdt.losses.triplet import TripletLoss
from dcdt.models.config import DCDTResidualConfig, OptimizerConfig
from dcdt.models.query_batch import QueryBatch
from dcdt.models.residual import ResidualTowers
from dcdt.samplers.base import explicit_batch
from dcdt.training.callbacks.collapse import CollapseAlarm

N_QUERIES, N_VIDEOS, WIDTH, RANK = 7, 11, 16, 5
KINDS = [("none", "sum"), ("none", "concat"), ("query", "sum")]
kinds = pytest.mark.parametrize(("attention", "fusion"), KINDS, ids=["sum", "concat", "attention"])
sharing = pytest.mark.parametrize("shared", ["all", "fields", "none"])


def make_tables(n_fields=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = normalize(torch.randn(N_QUERIES, WIDTH, generator=generator), dim=-1)
    videos = normalize(torch.randn(n_fields, N_VIDEOS, WIDTH, generator=generator), dim=-1)
    return Tables(queries, videos, videos.sum(0), ["title", "text", "tags"][:n_fields])


def make_model(attention="none", fusion="sum", shared="all", dropout=0.0, n_fields=2, loss=None):
    tables = make_tables(n_fields)
    torch.manual_seed(0)
    config = DCDTResidualConfig("dcdt_residual", tables.fields, RANK, shared, dropout, attention, fusion)
    loss = loss or InfoNCELoss(InfoNCEConfig("infonce", "each", 0.1, learn_temperature=True))
    model = ResidualTowers(config, tables, loss, OptimizerConfig(1e-3, 0.01, "constant"))
    model.record_loss = lambda *args: None  # there is no trainer
    return model


def batch_of(tables):
    n = len(tables.queries)
    return QueryBatch(tables.queries, ["?"] * n, [None] * n, [None] * n)


def scores_of(model):
    return model.eval().score(batch_of(model.tables))


def train(model, steps=3, lr=0.5):
    """Some steps of gradient descent on the whole catalogue; the gradients of the last stay."""
    label = torch.zeros(N_QUERIES, N_VIDEOS)
    label[torch.arange(N_QUERIES), torch.arange(N_QUERIES)] = 1
    batch = {
        "query": torch.arange(N_QUERIES),
        "columns": torch.arange(N_VIDEOS),
        "label": label,
        "weight": torch.ones_like(label),
    }
    model.train()
    losses = []
    for _ in range(steps):
        model.zero_grad()
        loss = model.training_step(batch, 0)
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= lr * parameter.grad
    return losses


@kinds
@sharing
@pytest.mark.parametrize("n_fields", [1, 2, 3])
def test_untrained_it_is_zero_shot(attention, fusion, shared, n_fields):
    model = make_model(attention, fusion, shared, n_fields=n_fields)
    reference = ZeroShot(ZeroShotConfig("zero_shot", model.tables.fields, "none"), model.tables)
    wanted = reference.score(batch_of(model.tables))
    if attention == "none":
        assert torch.equal(scores_of(model), wanted)
    else:
        torch.testing.assert_close(scores_of(model), wanted, atol=1e-6, rtol=0)
        assert torch.equal(
            model.attention_weights(model.tables.queries), torch.full((N_QUERIES, n_fields), 1 / n_fields)
        )


@kinds
@sharing
def test_trained_scores_by_brute_force(attention, fusion, shared):
    model = make_model(attention, fusion, shared)
    train(model)
    scores, tables = scores_of(model).detach(), model.tables
    weights = {name: value.detach() for name, value in model.state_dict().items()}

    def tower(name, x):
        hidden = (weights[f"{name}.inner.weight"] @ x + weights[f"{name}.inner.bias"]).relu()
        return weights[f"{name}.outer.weight"] @ hidden

    own = {"all": [0, 0, 0], "fields": [0, 1, 1], "none": [0, 1, 2]}[shared]
    assert len(model.towers) == max(own) + 1
    for query in range(N_QUERIES):
        q = tables.queries[query] + tower(f"towers.{own[0]}", tables.queries[query])
        for video in range(N_VIDEOS):
            t, d = (
                tables.videos[at, video] + tower(f"towers.{own[1 + at]}", tables.videos[at, video]) for at in (0, 1)
            )
            if attention == "query":
                alpha = torch.stack([q @ weights["keys"][0], q @ weights["keys"][1]]).softmax(0)
                wanted = 2 * (alpha[0] * (q @ t) + alpha[1] * (q @ d)) / (q.norm() * (t + d).norm())
            else:
                v = t + d + (tower("fusion", torch.cat([t, d])) if fusion == "concat" else 0)
                wanted = (q @ v) / (q.norm() * v.norm())
            torch.testing.assert_close(scores[query, video], wanted, atol=1e-5, rtol=1e-4)


@kinds
@sharing
def test_training_lowers_the_loss_and_every_parameter_learns(attention, fusion, shared):
    model = make_model(attention, fusion, shared)
    losses = train(model, steps=20)
    assert losses[-1] < losses[0]
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@kinds
def test_pairs_are_measured_as_ranking_does(attention, fusion):
    for measure in ("similarity", "distance"):
        model, seen = make_model(attention, fusion), []
        train(model)
        model.loss.measure = measure
        model.loss.forward = lambda *given, seen=seen: seen.append(given) or given[0]
        model.training_step(explicit_batch(torch.tensor([[0, 2, 1, 4], [5, 2, 3, 3], [2, 8, 0, 9]])), 0)
        scores = scores_of(model)[torch.tensor([[0], [5], [2]]), torch.tensor([[2, 1, 4], [2, 3, 3], [8, 0, 9]])]
        wanted = scores if measure == "similarity" else (2 - 2 * scores).sqrt()
        torch.testing.assert_close(seen[0][0], wanted, atol=1e-5, rtol=0)


def test_it_trains_on_distances_too():
    model = make_model(loss=TripletLoss(TripletConfig("triplet", 0.5)))
    losses = train(model, steps=20, lr=0.1)
    assert losses[-1] < losses[0]


def test_dropout_is_of_the_inputs_and_off_in_evaluation():
    model = make_model(dropout=0.5)
    vectors = model.tables.queries
    model.train()
    outputs = model.encode_queries(vectors)
    assert (outputs == 0).float().mean().item() == pytest.approx(0.5, abs=0.2)
    assert not torch.equal(outputs, model.encode_queries(vectors))
    model.eval()
    assert torch.equal(model.encode_queries(vectors), normalize(vectors, dim=-1))


def test_what_the_towers_start_from_is_said_in_one_place():
    """With another start the untrained model is zero-shot of the vectors that it gives."""
    turned = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))).Q
    mapped = turned * torch.linspace(0.5, 2, WIDTH)
    model = make_model()
    model._tower_input = lambda vectors: vectors @ mapped
    queries, videos = model.tables.queries @ mapped, (model.tables.videos @ mapped).sum(0)
    wanted = torch.cosine_similarity(queries[:, None], videos[None], dim=-1)
    torch.testing.assert_close(scores_of(model), wanted)


@kinds
def test_a_checkpoint_restores_the_scores(attention, fusion, tmp_path):
    model = make_model(attention, fusion)
    untrained = scores_of(model)
    train(model)
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    other = make_model(attention, fusion)
    other.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True))
    assert torch.equal(scores_of(other), scores_of(model))
    assert not torch.equal(scores_of(other), untrained)


def test_the_untrained_towers_are_not_called_silent(recwarn):
    model = make_model().eval()
    model.encode_queries(model.tables.queries)
    trainer = type("Trainer", (), {"sanity_checking": False, "current_epoch": 0})
    CollapseAlarm(0.99).on_validation_end(trainer, model)
    assert model.silent_towers() == []
    assert not [warning for warning in recwarn if "tower" in str(warning.message)]
    assert model.starts_useful
