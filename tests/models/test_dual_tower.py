import math

import pytest
import torch
from torch.nn.functional import normalize

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data.tables import Tables
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.distances import euclidean
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.models.query_batch import QueryBatch
from dcdt.samplers.base import explicit_batch

N_QUERIES, N_VIDEOS, WIDTH = 7, 11, 12
ATTENTION = ["none", "query"]
attention_kinds = pytest.mark.parametrize("attention", ATTENTION)
every_kind = pytest.mark.parametrize("attention", [*ATTENTION, "candidates"])


def make_tables(n_fields=2, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries = normalize(torch.randn(N_QUERIES, width, generator=generator), dim=-1)
    videos = normalize(torch.randn(n_fields, N_VIDEOS, width, generator=generator), dim=-1)
    return Tables(queries, videos, videos.sum(0), ["title", "text", "tags"][:n_fields])


def make_model(attention="none", tables=None, dropout=0.5, seed=0, margin=1.0, fusion="concat"):
    tables = tables or make_tables()
    torch.manual_seed(seed)
    fusion = "sum" if attention == "candidates" else fusion
    config = DCDTConfig("dcdt", tables.fields, WIDTH, dropout, attention, fusion)
    loss = ContrastiveLoss(ContrastiveConfig("contrastive", margin, squared=False))
    model = DualTower(config, tables, loss, OptimizerConfig(1e-3, 0.01, "constant"))
    if model.keys is not None:
        torch.nn.init.normal_(model.keys)
    model.record_loss = lambda *args: None  # there is no trainer
    return model


def batch_of(tables):
    n = len(tables.queries)
    return QueryBatch(tables.queries, ["?"] * n, [None] * n, [None] * n)


def index_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    query, video = (torch.randint(n, (4,), generator=generator) for n in (N_QUERIES, N_VIDEOS))
    negatives = torch.randint(N_VIDEOS, (4, 3), generator=generator)
    return explicit_batch(torch.column_stack([query, video, negatives]))


def step(model, lr=0.1):
    """One step of gradient descent, as training does it."""
    model.train()
    loss = model.training_step(index_batch(), 0)
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= lr * parameter.grad
            parameter.grad = None
    return loss


@attention_kinds
@pytest.mark.parametrize("width", [384, 1536, 3072])
@pytest.mark.parametrize("n_fields", [1, 2, 3])
def test_shapes(attention, width, n_fields):
    model = make_model(attention, make_tables(n_fields, width)).eval()
    vectors = WIDTH * (n_fields if attention == "query" else 1)
    assert model.encode_queries(model.tables.queries).shape == (N_QUERIES, vectors)
    assert model.video_vectors().shape == (N_VIDEOS, vectors)
    assert model.score(batch_of(model.tables)).shape == (N_QUERIES, N_VIDEOS)
    assert model.encode_videos(model.tables.videos[:, torch.zeros(2, 3, dtype=int)]).shape == (2, 3, vectors)
    torch.testing.assert_close(model.video_vectors().norm(dim=-1), torch.ones(N_VIDEOS))
    torch.testing.assert_close(model.encode_queries(model.tables.queries).norm(dim=-1), torch.ones(N_QUERIES))
    assert len(model.field_towers) == n_fields


def tower(part, weights, name):
    return (weights[f"{name}.linear.weight"] @ part + weights[f"{name}.linear.bias"]).relu()


def test_the_score_is_the_cosine_of_query_output_and_fused_fields():
    model = make_model().eval()
    weights, tables = model.state_dict(), model.tables
    scores = model.score(batch_of(tables))
    for query in range(N_QUERIES):
        for video in range(N_VIDEOS):
            q = tower(tables.queries[query], weights, "query_tower")
            fields = [tower(tables.videos[at, video], weights, f"field_towers.{at}") for at in range(2)]
            fused = weights["fusion.weight"] @ torch.cat(fields) + weights["fusion.bias"]
            wanted = (q @ fused) / (q.norm() * fused.norm())
            torch.testing.assert_close(scores[query, video], wanted)


def test_fusion_by_sum_is_the_cosine_with_the_added_fields():
    model = make_model(fusion="sum").eval()
    weights, tables = model.state_dict(), model.tables
    assert "fusion.weight" not in weights
    scores = model.score(batch_of(tables))
    for query in range(N_QUERIES):
        q = tower(tables.queries[query], weights, "query_tower")
        for video in range(N_VIDEOS):
            fused = sum(tower(tables.videos[at, video], weights, f"field_towers.{at}") for at in range(2))
            torch.testing.assert_close(scores[query, video], (q @ fused) / (q.norm() * fused.norm()))


def test_attention_of_the_query_over_the_fields():
    """Item 7 of the paper's silences: alpha(q) = softmax_m(W_q q . k_m), [alpha_t q'; alpha_d q'] . [t'; d']."""
    model = make_model("query").eval()
    weights, tables = model.state_dict(), model.tables
    scores = model.score(batch_of(tables))
    for query in range(N_QUERIES):
        projected = weights["query_tower.linear.weight"] @ tables.queries[query]
        logits = [projected @ weights["keys"][0], projected @ weights["keys"][1]]
        alpha = torch.stack(logits).exp() / sum(logit.exp() for logit in logits)
        torch.testing.assert_close(model.attention_weights(tables.queries)[query], alpha)
        q = tower(tables.queries[query], weights, "query_tower")
        left = torch.cat([alpha[0] * q, alpha[1] * q])
        for video in range(N_VIDEOS):
            right = torch.cat([tower(tables.videos[at, video], weights, f"field_towers.{at}") for at in range(2)])
            wanted = (left / left.norm()) @ (right / right.norm())
            torch.testing.assert_close(scores[query, video], wanted)
    assert model.attention_weights(tables.queries).std(0).max() > 0.05


def product(query, video, weights, tables):
    """`W_q q . (W_t t + W_d d)` of eq. 3, number by number."""
    total = 0.0
    for unit in range(WIDTH):
        row = weights["query_tower.linear.weight"][unit]
        left = sum(w * x for w, x in zip(row, tables.queries[query], strict=True))
        fields = [(weights[f"field_towers.{at}.linear.weight"][unit], tables.videos[at, video]) for at in range(2)]
        right = sum(w * x for row, vector in fields for w, x in zip(row, vector, strict=True))
        total += float(left * right)
    return total


def test_equation_3_as_printed_by_loops():
    """Item 7 of the paper's silences: a softmax over the candidates, with neither lengths, ReLU nor bias."""
    model = make_model("candidates").eval()
    weights, tables = model.state_dict(), model.tables
    assert {name.rpartition(".")[2] for name in weights} == {"weight"}
    scores = model.score(batch_of(tables))
    wanted = [[product(query, video, weights, tables) for video in range(N_VIDEOS)] for query in range(N_QUERIES)]
    torch.testing.assert_close(scores, torch.tensor(wanted), atol=1e-5, rtol=1e-4)
    assert scores.min() < 0 and not model.has_attention
    alpha = [[math.exp(value) / sum(map(math.exp, row)) for value in row] for row in wanted]
    torch.testing.assert_close(scores.softmax(-1), torch.tensor(alpha), atol=1e-5, rtol=1e-4)


def test_the_loss_of_equation_3_by_loops():
    """Eq. 7 of `d = 1 - alpha`, and with InfoNCE at temperature 1 `-log alpha`, over a query's columns."""
    batch = index_batch()
    rows = torch.column_stack([batch["video"], batch["negatives"]])
    model, infonce = (make_model("candidates", dropout=0.0) for _ in range(2))
    infonce.loss = InfoNCELoss(InfoNCEConfig("infonce", "each", temperature=1.0, learn_temperature=False))
    weights, tables, total, logarithms = model.state_dict(), model.tables, 0.0, 0.0
    for query, videos in zip(batch["query"].tolist(), rows.tolist(), strict=True):
        powers = [math.exp(product(query, video, weights, tables)) for video in videos]
        alpha = [power / sum(powers) for power in powers]
        total += (1 - alpha[0]) + sum((1 - (1 - one)) ** 2 for one in alpha[1:])
        logarithms -= math.log(alpha[0])
    assert model.training_step(batch, 0).item() == pytest.approx(total / 16, abs=1e-6)
    assert infonce.training_step(batch, 0).item() == pytest.approx(logarithms / 4, abs=1e-6)


def test_a_column_without_weight_is_no_candidate_of_equation_3():
    model, seen, batch = make_model("candidates", dropout=0.0), [], shared_batch()
    model.loss.forward = lambda *given: seen.append(given[0]) or given[0]
    model.training_step(batch, 0)
    alpha = 1 - seen[0]
    scores = model.eval().score(batch_of(model.tables))[batch["query"]][:, batch["columns"]]
    torch.testing.assert_close(alpha[0], scores[0].softmax(-1))
    torch.testing.assert_close(alpha[1, :4], scores[1, :4].softmax(-1))
    assert alpha[1, 4] == 0


def test_attention_starts_even():
    config = DCDTConfig("dcdt", ["title", "text"], WIDTH, 0.0, "query", "concat")
    model = DualTower(config, make_tables(), torch.nn.Identity(), OptimizerConfig(1e-3, 0.01, "constant"))
    assert model.attention_weights(model.tables.queries).unique().tolist() == [0.5]


@attention_kinds
def test_training_scores_the_pairs_as_ranking_does(attention):
    model = make_model(attention, dropout=0.0)
    batch = index_batch()
    distances = []
    model.loss.forward = lambda distance, label, *_: distances.append((distance, label)) or distance
    model.training_step(batch, 0)
    [(distance, label)] = distances
    rows = torch.column_stack([batch["video"], batch["negatives"]])
    scores = model.eval().score(batch_of(model.tables))[batch["query"].unsqueeze(1), rows]
    torch.testing.assert_close(distance, (2 - 2 * scores).clamp(min=0).sqrt(), atol=1e-3, rtol=0)
    assert label.tolist() == [[1, 0, 0, 0]] * 4


@attention_kinds
def test_the_loss_of_a_batch_by_brute_force(attention):
    model = make_model(attention, dropout=0.0)
    batch, tables = index_batch(), model.tables
    total = 0
    for query, video, negatives in zip(batch["query"], batch["video"], batch["negatives"], strict=True):
        for place, other in enumerate([video, *negatives]):
            q = model.encode_queries(tables.queries[query][None])
            v = model.encode_videos(tables.videos[:, other][:, None])
            d = euclidean(q, v)[0]
            total += d if place == 0 else (1 - d).clamp(min=0) ** 2
    torch.testing.assert_close(model.training_step(batch, 0), total / 16)


@every_kind
def test_every_parameter_learns(attention):
    model = make_model(attention, dropout=0.0, margin=2.0)
    model.training_step(index_batch(), 0).backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@every_kind
def test_dropout_is_off_in_evaluation(attention):
    model = make_model(attention)
    vectors, fields = model.tables.queries, model.tables.videos
    assert not torch.equal(model.encode_queries(vectors), model.encode_queries(vectors))
    assert not torch.equal(model.encode_videos(fields), model.encode_videos(fields))
    model.eval()
    assert torch.equal(model.encode_queries(vectors), model.encode_queries(vectors))
    assert torch.equal(model.encode_videos(fields), model.encode_videos(fields))
    assert not torch.equal(step(model), step(model))


@every_kind
def test_video_vectors_are_computed_once_until_the_weights_change(attention):
    model = make_model(attention).eval()
    first = model.video_vectors()
    assert model.video_vectors() is first
    step(model)
    model.eval()
    assert not torch.equal(model.video_vectors(), first)
    torch.testing.assert_close(model.video_vectors(), model.encode_videos(model.tables.videos))


def test_video_vectors_follow_loaded_weights():
    model, other = make_model(seed=0).eval(), make_model(seed=1).eval()
    first = model.video_vectors()
    model.load_state_dict(other.state_dict())
    assert not torch.equal(model.video_vectors(), first)
    torch.testing.assert_close(model.video_vectors(), other.video_vectors())


def test_video_vectors_follow_the_model_to_another_type():
    model = make_model().eval()
    model.video_vectors()
    model.double().tables.to(dtype=torch.float64)
    assert model.score(batch_of(model.tables)).dtype == torch.float64


@every_kind
def test_a_checkpoint_restores_the_scores(attention, tmp_path):
    model = make_model(attention)
    step(model)
    torch.save(model.state_dict(), tmp_path / "model.ckpt")
    other = make_model(attention, seed=9)
    assert not torch.equal(other.eval().score(batch_of(other.tables)), model.eval().score(batch_of(model.tables)))
    other.load_state_dict(torch.load(tmp_path / "model.ckpt", weights_only=True))
    assert torch.equal(other.score(batch_of(other.tables)), model.score(batch_of(model.tables)))


def test_a_checkpoint_carries_no_table():
    assert not any("tables" in name for name in make_model().state_dict())


def test_the_same_seed_makes_the_same_model_and_step():
    one, other = make_model(seed=3), make_model(seed=3)
    for model in (one, other):
        torch.manual_seed(4)
        step(model)
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("name", "silenced"), [("query", "query_tower"), ("title", "field_towers.0"), ("text", "field_towers.1")]
)
def test_a_silent_tower_is_named(name, silenced):
    model = make_model().eval()
    assert model.silent_towers() == []
    with torch.no_grad():
        model.get_submodule(silenced).linear.bias.fill_(-100)
    assert model.silent_towers() == [name]


@pytest.mark.parametrize("n_fields", [1, 2, 3])
def test_zero_shot_is_the_cosine_of_the_sum(n_fields):
    tables = make_tables(n_fields)
    model = ZeroShot(ZeroShotConfig("zero_shot", tables.fields, "none"), tables)
    summed = tables.videos.sum(0)
    wanted = torch.cosine_similarity(tables.queries[:, None], summed[None], dim=-1)
    torch.testing.assert_close(model.score(batch_of(tables)), wanted)
    assert not model.trained_by_epochs
    assert list(model.parameters()) == []


def test_the_frozen_vectors_are_title_and_text_whatever_the_fields():
    tables = make_tables(2)
    torch.testing.assert_close(tables.frozen, normalize(tables.videos[0] + tables.videos[1], dim=-1))
    assert tables.width == 16


def shared_batch():
    """Four queries that share five columns, with two positives in a row and a cell that does not count."""
    label = torch.zeros(4, 5)
    label[torch.arange(4), torch.arange(4)] = 1
    label[0, 4] = 1
    weight = torch.ones(4, 5)
    weight[1, 4] = 0
    columns = torch.tensor([3, 0, 7, 9, 10])
    batch = {"query": torch.tensor([0, 2, 3, 6]), "columns": columns, "label": label, "weight": weight}
    return {**batch, "n_positives": 2}


@attention_kinds
@pytest.mark.parametrize("measure", ["distance", "similarity"])
def test_shared_columns_are_measured_as_ranking_does(attention, measure):
    model, seen = make_model(attention, dropout=0.0), []
    model.loss.measure = measure
    model.loss.forward = lambda *given: seen.append(given) or given[0]
    batch = shared_batch()
    model.training_step(batch, 0)
    [(measured, label, weight, teacher, n_positives)] = seen
    scores = model.eval().score(batch_of(model.tables))[batch["query"]][:, batch["columns"]]
    wanted = scores if measure == "similarity" else (2 - 2 * scores).sqrt()
    torch.testing.assert_close(measured, wanted, atol=1e-5, rtol=0)
    assert torch.equal(label, batch["label"]) and torch.equal(weight, batch["weight"])
    assert teacher is None and n_positives == 2


@pytest.mark.parametrize("batch", [index_batch(), shared_batch()], ids=["pairs", "shared"])
def test_a_taught_loss_gets_the_frozen_cosine_of_its_cells(batch):
    model, seen = make_model(), []
    model.loss.needs_teacher = True
    model.loss.forward = lambda *given: seen.append(given) or given[0]
    model.training_step(batch, 0)
    [(measured, _, _, teacher, _)] = seen
    assert teacher.shape == measured.shape
    for at, query in enumerate(batch["query"]):
        rows = batch["columns"] if "columns" in batch else [batch["video"][at], *batch["negatives"][at]]
        for column, video in enumerate(rows):
            wanted = torch.cosine_similarity(model.tables.queries[query], model.tables.frozen[video], dim=0)
            torch.testing.assert_close(teacher[at, column], wanted)
