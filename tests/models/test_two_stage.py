import io

import numpy as np
import pytest
import torch
from hydra import compose
from support import make_collection, prepare, quiet_trainer, slow_but

from dcdt.config import parse
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.evaluation.ranking import judged_ranks, quality, ranking_metrics, tie_order
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models.components import z_scores
from dcdt.models.config import OptimizerConfig
from dcdt.models.evidence import KERNELS
from dcdt.models.query_batch import query_batch
from dcdt.models.two_stage import JointTwoStage, TwoStage, rerank_scores
from dcdt.samplers.catalogue import CatalogueSampler
from dcdt.samplers.config import CatalogueSamplerConfig
from dcdt.samplers.pool import training_pool
from dcdt.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("hydra")

DEPTH = 7
PENALTIES = (0.003, 0.1, float("inf"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Grades 1 and 2 of which 2 is positive; the last queries ask what the first ask, the last videos are twins."""
    folder = make_collection(tmp_path_factory.mktemp("c"), grades=(1, 2), positive_grade=2, twins=3, repeats=10)
    parts = prepare(folder, SplitConfig("query", 0, 10, "all"))
    sampler = CatalogueSampler(
        CatalogueSamplerConfig("catalogue"), training_pool(parts.collection, parts.split), parts.tables
    )
    parts.data = RankingDataModule(parts.collection, parts.split, parts.pairs, sampler, 16, 0)
    return parts


def config_of(*overrides):
    chosen = [item for item in overrides if item.startswith("model=")] or ["model=two_stage"]
    others = [item for item in overrides if not item.startswith("model=")]
    composed = compose("config", ["data=files", "data.path=/x", *chosen, f"model.depth={DEPTH}", *others])
    return parse(composed).model


def prepared(made, *overrides):
    model = TwoStage(config_of(*overrides), made.tables)
    model.prepare(made.data)
    return model


def joint(made, *overrides, loss=None):
    torch.manual_seed(0)
    loss = loss or InfoNCELoss(InfoNCEConfig("infonce", "each", 1.0, learn_temperature=False))
    config = config_of("model=two_stage_joint", *overrides)
    model = JointTwoStage(config, made.tables, loss, OptimizerConfig(1e-2, 0.01, "constant"))
    model.prepare(made.data)
    return model.eval()


def batch_of(made, side="test"):
    rows = torch.from_numpy(getattr(made.split, side).queries)
    return query_batch(made.collection, made.tables, rows, made.data.sides.get(side)), rows  # training ranks all


def judgments_of(made, query, least):
    here = (made.collection.related.query == query) & (made.collection.related.grade >= least)
    return set(made.collection.related.video[here].tolist())


def normal(text):
    return text.strip().strip("?").lower()


@pytest.fixture(scope="module")
def fitted(made):
    return prepared(made, "model.penalty=0.01")


@pytest.mark.slow
def test_without_a_correction_it_is_the_recall(made):
    for model in (prepared(made, "model.penalty=inf"), joint(made, "model.penalty=inf")):
        batch, rows = batch_of(made)
        z = z_scores(model.recall.score(batch), batch.candidates)
        assert torch.equal(model.score(batch), z)
        assert model.statistics()["two_stage/penalty"] == -1
        order = tie_order(made.collection.videos.ids)
        judged = torch.arange(len(made.collection.videos)).expand(len(rows), -1)
        ranks = judged_ranks(model.recall.score(batch).float(), judged, order)
        assert torch.equal(judged_ranks(model.score(batch), judged, order), ranks)


def evidence_by_hand(made, model, query, video, own, z):
    """The columns of one pair; `own`: normalised text of a query that the memory may not read."""
    columns = [float(part[video]) for part in z]
    asked = made.tables.queries[query]
    for field in made.tables.videos[:, video]:
        whitening = model.evidence.whitening
        columns.append(float(torch.cosine_similarity(asked @ whitening, field @ whitening, dim=0)))
    texts: dict[str, list[int]] = {}
    for side in (made.split.train, made.split.val):
        for row in side.queries.tolist():
            texts.setdefault(normal(made.collection.queries.texts[row]), []).append(row)
    texts.pop(own, None)
    vectors = {text: made.tables.queries[rows[0]] for text, rows in texts.items()}
    alike = {text: float(torch.cosine_similarity(asked, vector, dim=0)) for text, vector in vectors.items()}
    for temperature in KERNELS:
        weight = {text: np.exp(value / temperature) for text, value in alike.items()}
        answered = [text for text, rows in texts.items() if any(video in judgments_of(made, row, 2) for row in rows)]
        columns.append(sum(weight[text] for text in answered) / sum(weight.values()))
    return columns


@pytest.mark.parametrize("left_out", [False, True])
def test_scores_by_brute_force(made, fitted, left_out):
    batch, rows = batch_of(made, "train" if left_out else "test")
    parts = fitted.recall.component_scores(batch, rows if left_out else None)[:2]
    z = [z_scores(part.float(), batch.candidates) for part in parts]
    found = fitted.score_left_out(batch, rows) if left_out else fitted.score(batch)
    order = tie_order(made.collection.videos.ids).tolist()
    assert fitted.names == ["recall", "recall_part", "cosine_title", "cosine_text", "memory_0.05", "memory_0.1"]
    moved = 0
    for at, query in enumerate(rows.tolist()[:6]):
        ranked = sorted(range(len(order)), key=lambda video: (-float(z[0][at, video]), order[video]))
        own = normal(made.collection.queries.texts[query]) if left_out else None
        weights = fitted._left_out_weights[fitted._position[query]] if left_out else fitted.weights
        for video in ranked[:DEPTH]:
            columns = evidence_by_hand(made, fitted, query, video, own, [part[at] for part in z])
            wanted = sum(float(w) * c / float(s) for w, c, s in zip(weights, columns, fitted.scale, strict=True))
            assert float(found[at, video]) == pytest.approx(wanted, abs=2e-4)
        again = sorted(range(len(order)), key=lambda video: -float(found[at, video]))
        assert set(again[:DEPTH]) == set(ranked[:DEPTH]) and again[DEPTH:] == ranked[DEPTH:]
        moved += again != ranked
    assert moved


@pytest.fixture(scope="module")
def lists(made, fitted):
    sides = [made.data.sides["val"]]
    return fitted.judged_lists(made.data, sides)


@pytest.mark.parametrize(
    "overrides", slow_but([[]], [[], ["model@model.recall=dcdt_ridge", "model@model.lexical=bm25"]])
)
def test_training_reads_scores_that_were_fitted_without_the_query(made, overrides):
    ridge = "model.recall.penalty" if overrides else "model.recall.second.penalty"
    model = joint(made, *overrides, f"{ridge}=0.01")
    batch, rows = batch_of(made, "train")
    at = [model._position[row] for row in rows.tolist()]
    recall, top = model._lists.evidence[at, :, 0], model._lists.top[at]
    z = z_scores(model.recall.component_scores(batch, rows)[0], None)
    torch.testing.assert_close(recall, z.gather(1, top))
    flattered = z_scores(model.recall.score(batch), None).gather(1, top)
    assert (flattered - recall)[model._lists.label[at] > 0].mean() > 0.1
    for place in at:
        start = model._lists.evidence[place] @ (model._left_out_weights[place] / model.scale)
        torch.testing.assert_close(model._start[place], start)
    assert set(model._lists.rows.tolist()) == set(made.split.train.queries) | set(made.split.val.queries)


def test_no_known_related_video_is_a_negative(made, fitted, lists):
    texts = made.collection.videos.texts
    spared = 0
    for at, query in enumerate(lists.rows.tolist()):
        positives, related = judgments_of(made, query, 2), judgments_of(made, query, 1)
        for place, video in enumerate(lists.top[at].tolist()):
            assert bool(lists.label[at, place]) == (video in positives)
            known = any(texts[video] == texts[other] for other in related)
            assert bool(lists.weight[at, place]) == (video in positives or not known)
            spared += known and video not in positives
    assert spared


@pytest.mark.slow
@pytest.mark.parametrize("fit_on", ["train", "judged"])
def test_the_penalty_is_the_best_over_queries_left_out(made, fit_on, monkeypatch):
    monkeypatch.setattr("dcdt.models.two_stage.PENALTIES", PENALTIES)
    model = prepared(made, f"model.fit_on={fit_on}")
    sides = [made.data.sides["val"]] if fit_on == "judged" else []
    found, n = {}, len(made.split.train.queries) + (len(made.split.val.queries) if sides else 0)
    assert len(model._left_out_weights) == n
    for penalty in PENALTIES:
        fixed, values = prepared(made, f"model.fit_on={fit_on}", f"model.penalty={penalty}"), []
        for name in ["train", *(["val"] if sides else [])]:
            batch, rows = batch_of(made, name)
            side = made.split.train if name == "train" else made.split.val
            scores = fixed.score_left_out(batch, rows)
            for at, row in enumerate(rows.tolist()):
                here = side.judgments.query == row
                judged = torch.from_numpy(side.judgments.video[here])[None]
                ranks = judged_ranks(scores[at : at + 1], judged, fixed.order)
                metrics = ranking_metrics(ranks, torch.from_numpy(side.judgments.grade[here])[None], 2)
                values.append(float(quality(metrics, (1, 5, 10))))
        found[penalty] = round(float(np.mean(values)), 6)
    assert len(set(found.values())) > 1
    assert float(model.penalty) == pytest.approx(max(p for p in PENALTIES if found[p] == max(found.values())))


def test_a_test_query_teaches_nothing(made, fitted):
    held = set(made.split.test.queries.tolist())
    assert not held & fitted._group.keys() and not held & fitted._position.keys()
    groups = {normal(made.collection.queries.texts[row]) for row in fitted._group}
    assert len(fitted.evidence.judged_vectors) == len(groups) < len(fitted._group)


def test_validation_is_scored_as_left_out(made, fitted):
    trainer = quiet_trainer()
    trainer.test(fitted, datamodule=made.data, verbose=False)
    batch, rows = batch_of(made, "val")
    found, wanted = fitted.results["val"].scores, fitted.score_left_out(batch, rows)
    seen = found.isfinite()
    torch.testing.assert_close(found[seen], wanted[seen])
    assert not torch.allclose(fitted.score(batch)[seen], wanted[seen])


def test_the_others_stay_beneath_in_their_order():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(5, 12, generator=generator)
    top = z.topk(4, dim=1).indices
    scores = 3 * torch.randn(5, 4, generator=generator)
    candidates = torch.ones(12, dtype=torch.bool)
    found = rerank_scores(z, top, scores, candidates)
    for row in range(5):
        rest = [at for at in z[row].argsort(descending=True).tolist() if at not in top[row]]
        assert [at for at in found[row].argsort(descending=True).tolist() if at not in top[row]] == rest
        assert found[row, top[row]].min() > found[row, rest].max()
        assert torch.equal(found[row, top[row]], scores[row])
    assert torch.equal(rerank_scores(z, top, z.gather(1, top), candidates), z)
    everything = z.topk(12, dim=1).indices
    assert torch.equal(rerank_scores(z, everything, z.gather(1, everything) + 1, None), z + 1)


def test_a_depth_beyond_the_catalogue_is_the_catalogue(made):
    batch, _ = batch_of(made)
    model = prepared(made, "model.depth=500", "model.penalty=0.1")
    assert model.score(batch).isfinite().all()
    assert model.read(batch)[1].shape[1] == len(made.collection.videos)


@pytest.mark.parametrize("kind", slow_but(["two_stage_joint"], ["two_stage", "two_stage_joint"]))
def test_a_saved_model_scores_the_same(made, kind):
    model = prepared(made, "model.penalty=0.01") if kind == "two_stage" else joint(made, "model.penalty=0.01")
    if kind == "two_stage_joint":
        torch.nn.init.normal_(model.joint.output.weight)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    config = config_of(f"model={kind}")
    trained = (model.loss, OptimizerConfig(1e-2, 0.01, "constant")) if kind == "two_stage_joint" else ()
    other = type(model)(config, made.tables, *trained)
    other.load_state_dict(torch.load(file, weights_only=True))
    batch, _ = batch_of(made)
    assert torch.equal(other.eval().score(batch), model.score(batch))
    assert other.statistics() == model.statistics()


def test_untrained_the_joint_network_adds_nothing(made, fitted):
    batch, _ = batch_of(made)
    model = joint(made, "model.penalty=0.01")
    assert torch.equal(model.score(batch), fitted.score(batch))
    train, known = batch_of(made, "train")
    assert torch.equal(model.score_left_out(train, known), fitted.score_left_out(train, known))


@pytest.mark.parametrize("measure", ["similarity", "distance"])
def test_a_training_step_by_hand(made, measure):
    loss = ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False)) if measure == "distance" else None
    model = joint(made, "model.penalty=0.01", loss=loss)
    torch.nn.init.normal_(model.joint.output.weight)
    model.record_loss = lambda *given: None
    rows = made.split.train.queries[:6].tolist()
    found = model.training_step({"query_rows": torch.tensor(rows)}, 0)
    values, counted = [], []
    for row in rows:
        at = model._position[row]
        if not model._lists.label[at].any():
            continue
        top = model._lists.top[at]
        added = model.joint(made.tables.queries[row][None], made.tables.videos[:, top], torch.arange(DEPTH)[None])[0]
        scores, label, weight = model._start[at] + added, model._lists.label[at], model._lists.weight[at]
        if measure == "similarity":
            mass = scores[weight > 0].logsumexp(0)
            values.append((mass - scores[label > 0]).mean())
        else:
            distance = 1 - scores.sigmoid()
            each = torch.where(label > 0, distance, (1 - distance).clamp(min=0) ** 2)
            values.append((each * weight).sum())
            counted.append(weight.sum())
    wanted = torch.stack(values).mean() if measure == "similarity" else sum(values) / sum(counted)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    found.backward()
    learned = [(name, value.grad) for name, value in model.named_parameters() if value.requires_grad]
    assert learned and [name for name, gradient in learned if not gradient.any()] == []


@pytest.mark.slow
def test_lists_without_a_positive_are_left_out_of_training(made):
    model = joint(made)
    model.record_loss = lambda *given: None
    model._lists.label.zero_()
    loss = model.training_step({"query_rows": torch.from_numpy(made.split.train.queries[:4])}, 0)
    assert loss.item() == 0
    loss.backward()


@pytest.mark.slow
def test_trained_it_leaves_recall_and_weights_as_they_were(made):
    model = joint(made, "model.penalty=0.01")
    before = {name: value.clone() for name, value in model.state_dict().items() if torch.is_tensor(value)}
    trainer = quiet_trainer(max_epochs=2)
    trainer.fit(model, datamodule=made.data)
    after = model.state_dict()
    changed = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"joint"}


def test_a_recall_that_is_trained_or_flattered_is_refused(made):
    with pytest.raises(UserError, match="model=two_stage takes models that need no epochs; dcdt is trained"):
        TwoStage(config_of("model@model.recall=dcdt"), made.tables)
    with pytest.raises(UserError, match=r"model\.recall\.name is 'two_stage'"):
        config_of("model.recall.name=two_stage")
    with pytest.raises(UserError, match=r"model\.depth is 1"):
        config_of("model.depth=1")
    with pytest.raises(UserError, match=r"model\.recall\.first\.k1 is -1"):
        config_of("model.recall.first.k1=-1")
    with pytest.raises(UserError, match=r"model\.lexical\.name is 'zero_shot'"):
        config_of("model@model.lexical=zero_shot")
