"""`dcdt export RUN --to sentence-transformers FOLDER`: the library loads the folder, and gives the run's vectors."""

import numpy as np
import pytest
import torch
from commands import dcdt
from sentence_transformers import SentenceTransformer
from support import slow_rows_but, small_run

from dcdt.embeddings.providers.local import LocalEmbedder
from dcdt.training.checkpoint import restore

TEXTS = ["the span of a basis, and its rank", "image and kernel of a shear"]
ONE_LAYER = ["embedder.layer_weights=[1.0]"]
CASES = [
    ("dcdt_ridge", []),
    ("dcdt", ONE_LAYER),
    ("dcdt_sum", []),
    ("zero_shot", ["embedder.prefix='query: '", *ONE_LAYER]),
    ("zero_shot_whitened", []),
    ("dcdt_encoder", []),
]


@pytest.fixture
def make(bench, tmp_path):
    """Train on the small collection; returns the run's folder."""
    return lambda *overrides: small_run(bench / "small", bench / "tiny", tmp_path / "run", *overrides)


def export(run, folder):
    return dcdt("export", run, "--to", "sentence-transformers", folder)


@pytest.mark.parametrize(("model", "overrides"), slow_rows_but(CASES[:2], CASES))
def test_the_library_gives_the_vectors_of_the_towers(make, tmp_path, model, overrides):
    run, folder = make(f"model={model}", *overrides), tmp_path / "exported"
    done = export(run, folder)
    assert done.returncode == 0, done.stderr
    trust = {} if overrides[-1:] == ONE_LAYER else {"trust_remote_code": True}
    assert ("trust_remote_code" in done.stdout) == bool(trust)
    loaded = SentenceTransformer(str(folder), device="cpu", **trust)
    restored = restore(run)
    texts = torch.tensor(embed(restored, TEXTS))
    with torch.no_grad():
        questions = restored.model.encode_queries(texts)
        one_text = restored.model.encode_videos(torch.stack([texts, texts]))
    assert np.allclose(loaded.encode_query(TEXTS), questions, atol=1e-5)
    assert np.allclose(loaded.encode(TEXTS), questions, atol=1e-5)
    assert np.allclose(loaded.encode_document(TEXTS), one_text, atol=1e-5)
    assert not np.allclose(questions, one_text, atol=1e-3) or model.startswith("zero_shot") or model == "dcdt_encoder"


def embed(restored, texts):
    """The vectors of texts by the run's encoder, trained or not."""
    embedder = LocalEmbedder(restored.settings.embedder)
    if restored.model.reads_tokens:
        embedder.model = restored.model.served_encoder()[0].eval()
    return embedder.embed(texts)


def test_the_card_says_data_protocol_and_figures_and_names_no_folder(make, tmp_path):
    run, folder = make("model=dcdt_ridge"), tmp_path / "exported"
    assert export(run, folder).returncode == 0
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: sentence-transformers")
    for text in ("dcdt_ridge", "small", "split: query", "untrained cosine 0.", "[0.", "20 videos", "smoothed with"):
        assert text in card
    assert str(tmp_path) not in card and "/tmp" not in card
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "out", "exported"}  # nothing half-written
    again = export(run, folder)
    assert again.returncode == 2 and "exists already" in again.stderr


@pytest.mark.parametrize("overrides", [["model=bm25"], ["model=dcdt_attention"]])
def test_a_model_that_is_more_than_a_map_of_texts_is_refused_in_words(make, tmp_path, overrides):
    done = export(make(*overrides), tmp_path / "exported")
    assert done.returncode == 2
    assert f"error: {overrides[0]} is not one map of a text to a vector" in done.stderr
    assert not (tmp_path / "exported").exists()


def test_an_embedder_that_runs_elsewhere_is_refused(make, tmp_path):
    run = make("model=bm25")
    config = (run / "config.yaml").read_text()
    start, end = config.index("\nembedder:"), config.index("\noptimizer:")
    remote = "\nembedder:\n  name: multilingual\n  threads: 1"
    (run / "config.yaml").write_text(config[:start] + remote + config[end:])
    done = export(run, tmp_path / "exported")
    assert done.returncode == 2 and "embedder=multilingual is no encoder" in done.stderr
