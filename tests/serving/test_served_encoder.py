"""A run that has trained its encoder answers by that encoder, as it was evaluated."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import dcdt
from dcdt.data.beir import load_collection
from dcdt.embeddings.providers.batching import combine_layers, round_to_float16
from dcdt.serving.recommender import ServedRecommender
from dcdt.training.checkpoint import restore

pytestmark = pytest.mark.slow

HALF = 3e-3  # states, and the vectors of questions, are of half precision
ENCODER = ("experiment=encoder", "optimizer.lr=1e-2", "trainer.max_epochs=3", "model.dropout=0.0")


HYBRID = ("experiment=hybrid_encoder", "optimizer.lr=1e-2", "trainer.max_epochs=3", "model.second.dropout=0.0")


@pytest.fixture(scope="module")
def run(make_run):
    return make_run(*ENCODER)


@pytest.mark.parametrize("options", [ENCODER, HYBRID])
def test_answers_have_the_scores_of_the_run(make_run, options, bench):
    run = make_run(*options)
    served, collection = dcdt.load(run), load_collection(bench / "small")
    scored = pq.read_table(run / "scores.parquet").to_pandas()
    for query, scores in list(scored.groupby("query_id"))[:8]:
        text = collection.queries.texts[collection.queries.row_of[query]]
        found = {video.id: video.score for video in served.recommend(text, 1000)[0]}
        wanted = dict(zip(scores["video_id"], scores["score"], strict=True))
        np.testing.assert_allclose([found[name] for name in wanted], list(wanted.values()), atol=HALF)


def test_the_exported_encoder_is_the_trained_one(run):
    model = restore(run).model
    encoder, tokenizer, _ = model.served_encoder()
    texts = ["span kernel", "rank of the basis plane trace"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        layers = encoder(batch["input_ids"], batch["attention_mask"]).numpy()
    wanted = round_to_float16(combine_layers(layers, [0.2, 1.0]))
    served = dcdt.load(run)
    np.testing.assert_allclose(served.embed(texts), wanted, atol=1e-3)
    plain = served._embedder.session.run(None, {name: batch[name].numpy() for name in ("input_ids", "attention_mask")})[
        0
    ]
    np.testing.assert_allclose(plain, layers, atol=1e-5)


@pytest.mark.parametrize("options", [ENCODER, HYBRID])
def test_a_video_that_is_added_scores_as_one_that_was_built(make_run, own_copy, options):
    served, other = dcdt.load(make_run(*options)), ServedRecommender(own_copy(*options))
    video = served.videos(["v4"])
    other.delete(["v4"])
    other.add(video)
    for question in ("span kernel", "rank basis"):
        one, two = (model.recommend(question, 1000)[0] for model in (served, ServedRecommender(other.catalogue.run)))
        scores = {video.id: video.score for video in two}
        assert [scores[video.id] for video in one] == pytest.approx([video.score for video in one], abs=HALF)
