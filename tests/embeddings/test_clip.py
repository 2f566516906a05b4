"""Pictures and questions in one space: folders of transformers and of sentence-transformers, and what is refused."""

import hashlib
import json
import shutil

import numpy as np
import pytest
from embeddings.tiny import write_model
from embeddings.tiny_clip import CHARTS, LENGTH, WIDTH, caption, draw_chart, make_model, write_clip
from PIL import Image
from support import made_once, make_collection

from dcdt.data.beir import load_collection
from dcdt.data.pictures import Picture
from dcdt.embeddings.cache import VectorCache
from dcdt.embeddings.config import ClipConfig
from dcdt.embeddings.providers import make_embedder, space_of
from dcdt.embeddings.tables import load_images
from dcdt.utils.errors import UserError


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return made_once(tmp_path_factory, "tiny_clip", write_clip)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return made_once(tmp_path_factory, "trained_clip", lambda folder: write_clip(folder, steps=300))


def config_of(folder):
    return ClipConfig("clip", str(folder))


def picture_of(path, picture=None):
    if picture is not None:
        picture.save(path)
    key = Picture(hashlib.sha256(path.read_bytes()).hexdigest())
    key.path = path
    return key


def unit(vectors):
    vectors = getattr(vectors, "pooler_output", vectors).numpy()
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_texts_and_pictures_are_embedded_as_transformers_does(kind, tmp_path):
    """Also texts of different lengths in one batch, which SigLIP was trained to read padded."""
    import torch

    model, processor = make_model(kind)
    texts = ["red", "what is a chart of falling blue steps", "red " * 50]
    charts = [draw_chart(CHARTS[at], side=side) for at, side in ((0, 64), (9, 90), (30, 40))]
    with torch.inference_mode():
        inputs = processor(text=texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        wanted = [unit(model.get_text_features(**inputs))]
        wanted.append(unit(model.get_image_features(**processor(images=charts, return_tensors="pt"))))
    folder = write_clip(tmp_path / "model", kind)
    keys = [picture_of(tmp_path / f"{at}.png", chart) for at, chart in enumerate(charts)]
    mixed = [texts[0], keys[0], texts[1], keys[1], texts[2], keys[2], texts[0]]
    embedder, done = make_embedder(config_of(folder)), []
    found = embedder.embed(mixed, done.append)
    assert sum(done) == len(mixed) and found.dtype == np.float32
    np.testing.assert_allclose(found[[0, 2, 4, 6]], wanted[0][[0, 1, 2, 0]], atol=1e-5)
    np.testing.assert_allclose(found[[1, 3, 5]], wanted[1], atol=1e-5)
    np.testing.assert_allclose(embedder.embed(texts[:1]), wanted[0][:1], atol=1e-5)  # short texts alone
    assert space_of(config_of(folder)).dimensions == found.shape[1] == WIDTH


@pytest.mark.slow
def test_a_folder_saved_by_sentence_transformers_has_the_same_vectors_in_a_space_of_its_own(clip, tmp_path):
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(clip)).save(str(tmp_path / "new"))
    (tmp_path / "old" / "0_CLIPModel").mkdir(parents=True)  # as versions before 5.4 wrote it
    for path in clip.iterdir():
        shutil.copy(path, tmp_path / "old" / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (tmp_path / "old" / "modules.json").write_text(json.dumps([module]))
    texts = ["red rising bars", picture_of(tmp_path / "a.png", draw_chart(CHARTS[3]))]
    wanted = make_embedder(config_of(clip)).embed(texts)
    for name in ("new", "old"):
        config = config_of(tmp_path / name)
        np.testing.assert_allclose(make_embedder(config).embed(texts), wanted, atol=1e-6)
        assert space_of(config).dimensions == WIDTH and space_of(config).model.startswith(f"{name}-")


@pytest.mark.slow
def test_transparent_pixels_are_white_and_of_an_animation_the_first_picture_counts(clip, tmp_path):
    black = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("white", "red")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    keys = [picture_of(tmp_path / "white.png", frames[0]), picture_of(tmp_path / "clear.png", black)]
    found = make_embedder(config_of(clip)).embed([*keys, picture_of(tmp_path / "a.gif")])
    np.testing.assert_allclose(found[1:], found[:1].repeat(2, 0), atol=1e-6)


@pytest.mark.slow
def test_a_model_trained_on_charts_finds_those_that_it_has_not_seen(trained, tmp_path):
    """Of 32 kinds of charts; by chance it would be the right one for 1 of 32."""
    keys = [picture_of(tmp_path / f"{at}.png", draw_chart(chart, 10**6 + at)) for at, chart in enumerate(CHARTS)]
    vectors = make_embedder(config_of(trained)).embed([*map(caption, CHARTS), *keys])
    texts, pictures = vectors[: len(CHARTS)], vectors[len(CHARTS) :]
    assert ((texts @ pictures.T).argmax(1) == np.arange(len(CHARTS))).mean() > 0.9


def text_model(folder, clip):
    write_model(folder)


def pickled(folder, clip):
    shutil.copytree(clip, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def broken(folder, clip):
    shutil.copytree(clip, folder)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


def foreign_code(folder, clip):
    shutil.copytree(clip, folder)
    (folder / "mine.py").write_text("raise SystemExit(7)")
    (folder / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "mine.Mine"}]))


@pytest.mark.slow
@pytest.mark.parametrize("make", [text_model, pickled, broken, foreign_code])
def test_what_is_no_model_of_texts_and_pictures_is_refused_in_words(make, clip, tmp_path):
    make(tmp_path / "model", clip)
    with pytest.raises(UserError, match=r"no CLIP or SigLIP that sentence-transformers can load|holds no weights"):
        config = config_of(tmp_path / "model")
        space_of(config)
        make_embedder(config)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match="'/nowhere' is neither a folder"):
        space_of(config_of("/nowhere"))


@pytest.fixture
def folder(tmp_path):
    return make_collection(tmp_path / "collection", 5, 20)


def add(folder, name, chart, seed=0):
    (folder / "images").mkdir(exist_ok=True)
    draw_chart(chart, seed).save(folder / "images" / name)


@pytest.mark.slow
def test_pictures_are_cached_by_content_and_bad_ones_left_out(clip, folder, caplog, monkeypatch):
    for name, at in (("v1-2.png", 3), ("v1-1.png", 9), ("v3.png", 3), ("other.png", 5)):
        add(folder, name, CHARTS[at])
    (folder / "images" / "v0.png").write_text("a text")
    collection, cache = load_collection(folder), str(folder / "cache")
    tables = load_images(collection, config_of(clip), cache)
    notes = [record.message for record in caplog.records]
    assert notes == [
        f"{folder / 'images'}: 1 pictures that cannot be read: v0.png (cannot identify image file).",
        f"{folder / 'images'}: 1 files not named by a video's id: other.png.",
    ]
    keys = [picture_of(folder / "images" / name) for name in ("v1-1.png", "v1-2.png", "v3.png")]
    assert keys[1] == keys[2]
    store = VectorCache(cache, space_of(config_of(clip)))
    vectors = store.vectors(keys)
    assert len(store) == 20 + 2
    mean = vectors.mean(0)
    assert tables.passages.offsets == [0, 1, 3, 4, 5, 6]
    rows = [mean, vectors[0], vectors[1], mean, vectors[2], mean]
    np.testing.assert_allclose(tables.passages.vectors.numpy(), rows, atol=1e-6)
    np.testing.assert_allclose(tables.queries.numpy(), store.vectors(collection.queries.texts))

    def refuse(config):
        raise AssertionError("embedded again")

    monkeypatch.setattr("dcdt.embeddings.fill.make_embedder", refuse)
    (folder / "images" / "v3.png").rename(folder / "images" / "v4.png")
    assert load_images(collection, config_of(clip), cache, False).passages.offsets == [0, 1, 3, 4, 5, 6]
    add(folder, "v0.png", CHARTS[20])
    with pytest.raises(AssertionError, match="again"):
        load_images(collection, config_of(clip), cache, False)


@pytest.mark.slow
def test_a_collection_without_a_picture_is_refused(clip, folder):
    with pytest.raises(UserError, match="images must hold pictures named by a video's id"):
        load_images(load_collection(folder), config_of(clip), str(folder / "cache"), False)
