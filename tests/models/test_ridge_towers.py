import io

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from support import make_collection, prepare, quiet_trainer
from torch.nn.functional import normalize

from baselines.config import ZeroShotConfig
from baselines.zero_shot import ZeroShot
from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.evaluation.ranking import tie_order
from dcdt.models.config import RidgeConfig
from dcdt.models.query_batch import query_batch
from dcdt.models.ridge_towers import (
    PENALTIES,
    RidgeTowers,
    fitted_sides,
    fitting_targets,
    ridge,
    smooth_with_neighbours,
)

FIELDS = ["title", "text"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """60 queries, of which the last 10 ask what the first 10 ask."""
    parts = prepare(make_collection(tmp_path_factory.mktemp("c"), repeats=10), SplitConfig("query", 0, 10, "all"))
    parts.data = RankingDataModule(parts.collection, parts.split, parts.pairs, None, 16, 0)
    return parts


def fitted(made, penalty=None, whiten="soft", weight=0.2, fit_on="train"):
    model = RidgeTowers(RidgeConfig("dcdt_ridge", FIELDS, whiten, 3, weight, fit_on, penalty), made.tables)
    model.prepare(made.data)
    return model


def pairs(n=14, width=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, width, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("n", [4, 14])  # fewer and more queries than dimensions
@pytest.mark.parametrize("penalty", [0.3, 10.0])
def test_equals_ridge_regression_of_what_the_identity_leaves(n, penalty):
    x, y = pairs(n)
    expected = SklearnRidge(alpha=penalty, fit_intercept=False).fit(x.numpy(), (y - x).numpy()).coef_.T
    np.testing.assert_allclose(ridge(x, y).matrix(penalty).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("penalty", [0.3, 10.0])
def test_left_out_equals_fitting_again_without_each_query(penalty):
    x, y = pairs()
    keep = ~torch.eye(len(x), dtype=torch.bool)
    fits = [ridge(x[others], y[others]).matrix(penalty).double() for others in keep]
    expected = torch.stack([one + one @ fit for one, fit in zip(x, fits, strict=True)])
    torch.testing.assert_close(ridge(x, y).left_out(penalty, x, y).double(), expected, atol=1e-5, rtol=1e-5)


def test_an_endless_penalty_is_the_untrained_cosine(made):
    rows = torch.from_numpy(made.split.test.queries)
    for whiten in ("none", "soft"):
        untrained = ZeroShot(ZeroShotConfig("zero_shot", FIELDS, whiten), made.tables)
        untrained.prepare(made.data)
        batch = query_batch(made.collection, made.tables, rows)
        trained = fitted(made, penalty=float("inf"), whiten=whiten, weight=0.0)
        torch.testing.assert_close(trained.score(batch), untrained.score(batch))
        assert trained.statistics() == {"dcdt_ridge/penalty": -1.0}


def test_a_small_penalty_moves_training_queries_to_their_videos(made):
    groups, targets, _ = fitting_targets(
        made.collection, fitted_sides(made.data, "train"), fitted(made).video_vectors()
    )
    asked = made.tables.queries[[rows[0] for rows in groups]]
    near = [(fitted(made, penalty).encode_queries(asked) * targets).sum(1).mean() for penalty in (1e-3, 1.0, 1e9)]
    assert near[0] > 0.99 and near[0] > near[1] > near[2]


def test_targets_are_positives_of_queries_with_equal_text_together(made):
    videos = normalize(made.tables.videos.sum(0), dim=-1)
    groups, targets, _ = fitting_targets(made.collection, fitted_sides(made.data, "train"), videos)
    assert sorted(row for rows in groups for row in rows) == sorted(set(made.split.pairs[:, 0].tolist()))
    assert any(len(rows) > 1 for rows in groups)
    for rows, target in zip(groups, targets, strict=True):
        texts = {made.collection.queries.texts[row].strip().strip("?").lower() for row in rows}
        assert len(texts) == 1
        positives = {video for query, video in made.split.pairs.tolist() if query in rows}
        torch.testing.assert_close(target, normalize(videos[sorted(positives)].sum(0), dim=0))


@pytest.mark.parametrize("fit_on", ["train", "judged"])
def test_the_penalty_is_the_best_of_leave_one_out(made, fit_on):
    model = fitted(made, fit_on=fit_on)
    videos = model.video_vectors()
    groups, targets, _ = fitting_targets(made.collection, fitted_sides(made.data, fit_on), videos)
    n_judged = len(made.split.train.queries) + len(made.split.val.queries)
    assert sum(map(len, groups)) == (n_judged if fit_on == "judged" else len(made.split.train.queries))
    asked = normalize(made.tables.queries[[rows[0] for rows in groups]] @ model.whitening, dim=-1)
    order, found = tie_order(made.collection.videos.ids).numpy(), {}
    for penalty in PENALTIES:
        scores, values = (ridge(asked, targets).left_out(penalty, asked, targets) @ videos.T).numpy(), []
        for rows, row_scores in zip(groups, scores, strict=True):
            for row in rows:
                wanted = set(made.collection.judgments.video[made.collection.judgments.query == row].tolist())
                ranked = sorted(range(len(videos)), key=lambda video: (-row_scores[video], order[video]))
                gains = [video in wanted for video in ranked]
                ideal = sum(1 / np.log2(at + 2) for at in range(min(10, len(wanted))))
                ndcg = sum(1 / np.log2(at + 2) for at in range(10) if gains[at]) / ideal
                values.append((1 / (1 + gains.index(True)) + ndcg) / 2)
        found[penalty] = round(float(np.mean(values)), 9)
    assert len(set(found.values())) > 1
    assert float(model.penalty) == pytest.approx(max(p for p in PENALTIES if found[p] == max(found.values())))


def test_a_test_query_is_no_part_of_the_fit(made):
    held = set(made.split.test.queries.tolist())
    for fit_on in ("train", "judged"):
        assert not held & fitted(made, fit_on=fit_on)._group.keys()
    model = fitted(made, fit_on="judged")
    assert model.reads_validation and not fitted(made).reads_validation
    rows = torch.from_numpy(made.split.test.queries)
    batch = query_batch(made.collection, made.tables, rows)
    assert torch.equal(model.score_left_out(batch, rows), model.score(batch))


def test_left_out_scores_do_not_know_the_query(made):
    model = fitted(made, penalty=1e-2)
    rows = torch.from_numpy(np.unique(made.split.pairs[:, 0]))
    batch = query_batch(made.collection, made.tables, rows)
    side = made.split.train
    positive = torch.zeros(len(rows), len(made.collection.videos), dtype=torch.bool)
    for query, video in zip(side.judgments.query.tolist(), side.judgments.video.tolist(), strict=True):
        positive[rows.tolist().index(query), video] = True
    gain = (model.score(batch) - model.score_left_out(batch, rows))[positive].mean()
    assert gain > 0.1


def test_the_state_scores_alike_after_a_round_trip(made):
    model, other = (
        fitted(made),
        RidgeTowers(RidgeConfig("dcdt_ridge", FIELDS, "soft", 3, 0.2, "train", None), made.tables),
    )
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    batch = query_batch(made.collection, made.tables, torch.from_numpy(made.split.test.queries))
    assert torch.equal(model.score(batch), other.score(batch))
    assert other.statistics() == model.statistics()


def test_a_planted_rotation_is_learned_by_few_queries():
    """Queries are rotated videos: the untrained cosine is lost, the ridge turns them back."""
    generator = torch.Generator().manual_seed(0)
    videos = normalize(torch.randn(50, 8, generator=generator), dim=-1)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    asked = videos @ rotation
    mapped = asked[25:] + asked[25:] @ ridge(asked[:25], videos[:25]).matrix(0.1)
    found = (normalize(mapped, dim=-1) @ videos.T).argmax(1)
    assert (found == torch.arange(25, 50)).float().mean() > 0.9
    assert ((asked[25:] @ videos.T).argmax(1) == torch.arange(25, 50)).float().mean() < 0.5


def test_tested_like_every_model(made):
    model, trainer = fitted(made), quiet_trainer()
    trainer.test(model, datamodule=made.data, verbose=False)
    assert set(model.results) == {"val", "test"}


@pytest.mark.parametrize("chunk", [4, 100])
def test_neighbours_equal_a_loop(chunk):
    videos = normalize(torch.randn(11, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = []
    for at, video in enumerate(videos):
        others = sorted((other for other in range(11) if other != at), key=lambda other: -float(video @ videos[other]))
        expected.append(normalize(video + 0.3 * normalize(videos[others[:4]].mean(0), dim=0), dim=0))
    torch.testing.assert_close(smooth_with_neighbours(videos, 4, 0.3, chunk), torch.stack(expected))


def test_no_neighbour_and_no_weight_change_nothing_and_few_videos_are_enough():
    videos = normalize(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert torch.equal(smooth_with_neighbours(videos, 3, 0.0), videos)
    assert torch.equal(smooth_with_neighbours(videos[:1], 3, 0.5), videos[:1])
    torch.testing.assert_close(smooth_with_neighbours(videos, 4, 0.5), smooth_with_neighbours(videos, 20, 0.5))
