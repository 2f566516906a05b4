"""BM25, ridge towers and the trained encoder fused by a weight that validation queries choose."""

import json

import pytest
import torch
from support import make_collection, small_run

from baselines.hybrid import WEIGHTS
from dcdt.models.components import z_scores
from dcdt.models.query_batch import query_batch
from dcdt.training.checkpoint import restore


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fused")
    collection = make_collection(folder / "small", n_videos=20, n_queries=60)
    changes = ("experiment=hybrid_encoder", "optimizer.lr=1e-2", "model.second.dropout=0.0")
    return small_run(collection, folder / "tiny", folder / "run", *changes)


def test_scores_are_weighted_z_scores_of_both_models(run):
    model, collection = (restored := restore(run)).model, restored.collection
    queries = query_batch(collection, model.tables, torch.arange(9))
    with torch.no_grad():
        first, second = (z_scores(part.score(queries), None) for part in (model.first, model.second))
        wanted = model.weight * first + (1 - model.weight) * second
        torch.testing.assert_close(model.score(queries), wanted)
    assert float(model.weight) in [pytest.approx(weight) for weight in WEIGHTS]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["hybrid/weight"] == pytest.approx(float(model.weight))


def test_the_first_model_scores_validation_queries_as_if_it_had_not_been_fitted_on_them(run):
    model = restore(run).model
    assert model.reads_validation and model.first.reads_validation


def test_only_the_encoder_is_trained(run):
    model = restore(run).model
    trained = {parameter for group in model.parameter_groups() for parameter in group["params"]}
    assert trained == set(model.second.parameters()) and not set(model.first.parameters())
