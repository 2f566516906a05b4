"""The threshold of `abstain` is chosen on the scores by which the run was judged on its validation."""

import pytest
import torch
from support import slow_but

from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.evaluation.ranking import tie_order
from dcdt.models.ranking import rank_side
from dcdt.serving.threshold import validation_scores
from dcdt.training.checkpoint import restore
from dcdt.utils.files import read_json

FITTED = ["dcdt_ridge", "two_stage", "hybrid_towers"]


@pytest.mark.parametrize("model", slow_but(["dcdt_ridge"], ["zero_shot", *FITTED]))
@pytest.mark.slow
def test_validation_queries_have_the_scores_of_the_run(make_run, model):
    folder = make_run(f"model={model}", *(["model.depth=8"] if model == "two_stage" else []))
    restored = restore(folder)
    collection = restored.collection
    assert restored.model.reads_validation == (model in FITTED)
    data = RankingDataModule(collection, make_split(collection, restored.settings.split), {}, None, 1, 0, (1,))
    with torch.no_grad():
        scores = torch.stack(list(validation_scores(restored, data)))  # (Q, N)
    side, ties = data.sides["val"], tie_order(collection.videos.ids)
    _, metrics, _ = rank_side(side, torch.arange(len(scores)), scores, ties, collection.positive_grade, (5,))
    wanted = read_json(folder / "metrics.json")
    for name in ("mrr", "ndcg@5"):
        assert float(metrics[name].mean()) == pytest.approx(wanted[f"val/{name}"], abs=1e-6)
    if model == "zero_shot":
        found = restored.tables.queries[side.queries] @ restored.model.video_vectors().T
        torch.testing.assert_close(scores, found.masked_fill(~side.candidates, float("-inf")))
