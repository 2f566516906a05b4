"""Pictures as a part of a model: what a configuration means, and the cosine with the best picture."""

import json
from itertools import pairwise

import pytest
import torch
from hydra import compose
from support import make_collection, prepare

from baselines.config import ImageConfig
from baselines.zero_shot import Image
from dcdt.config import parse
from dcdt.config.registry import depends_on, expand_images
from dcdt.data.beir import load_collection
from dcdt.data.config import SplitConfig
from dcdt.data.tables import PassageVectors, Tables
from dcdt.models.query_batch import query_batch
from dcdt.utils.errors import MissingField, UserError

pytestmark = pytest.mark.usefixtures("hydra")
CLIP = ["image_embedder=clip", "image_embedder.folder=/models/clip"]
FIELDS = "model.fields=[title,image]"


def settings_of(*overrides):
    return parse(compose("config", overrides=list(overrides)))


def test_a_field_of_pictures_is_a_part_of_its_own_whose_weight_judged_queries_choose():
    settings = settings_of("model=zero_shot", FIELDS, "model.whiten=soft", *CLIP)
    model = settings.model
    assert (model.name, model.fusion, model.tune_on) == ("hybrid", "convex", "judged")
    assert (model.first.name, model.first.fields, model.first.whiten) == ("zero_shot", ["title"], "soft")
    assert model.second == ImageConfig("image")
    assert settings.fields == ["title"] and settings.reads_images
    assert settings.option == "hybrid_image"
    preset = settings_of("model=hybrid_image", "model.first.whiten=soft", "model.first.fields=[title]", *CLIP)
    assert preset.model == model and preset.reads_images
    inner = settings_of("model=hybrid", "model.second.fields=[title,text,image]", *CLIP)
    assert inner.model.second.second == ImageConfig("image") and inner.fields == ["title", "text"]
    alone = settings_of("model=zero_shot", "model.fields=[image]", *CLIP)
    assert alone.model == ImageConfig("image") and alone.reads_images


def test_without_a_model_of_pictures_nothing_changes():
    settings = settings_of("model=zero_shot", FIELDS)
    assert settings.model.fields == ["title", "image"] and not settings.reads_images
    other = settings_of("model=zero_shot", *CLIP)  # as a job of a sweep over the fields
    assert other.model == settings_of("model=zero_shot").model and not other.reads_images
    assert settings_of("model=dcdt", FIELDS, *CLIP).model.fields == ["title", "image"]
    for odd in (3, {"name": "zero_shot"}, {"name": "zero_shot", "fields": None}, {"fields": ["image"]}):
        assert expand_images(odd) == odd


def test_the_weight_depends_on_the_training_queries():
    assert depends_on({"name": "zero_shot", "fields": ["title", "image"]}) == {"train_queries"}
    assert depends_on(compose("config", overrides=["model=zero_shot", FIELDS]).model) == {"train_queries"}
    assert depends_on({"name": "zero_shot", "fields": ["title"]}) == frozenset()


def test_a_folder_must_be_named():
    with pytest.raises(UserError, match=r"image_embedder.folder is not set; give it as image_embedder.folder=VALUE"):
        settings_of("image_embedder=clip")


def test_the_field_without_pictures_says_what_reads_them(tmp_path):
    collection = load_collection(make_collection(tmp_path / "c", 5, 20))
    with pytest.raises(MissingField, match="Pictures are read by model=zero_shot with image_embedder=clip"):
        collection.check_fields(["title", "image"])
    path = tmp_path / "c" / "corpus.jsonl"  # a column of a table may have this name too
    records = [json.loads(line) | {"metadata": {"image": "a.png"}} for line in path.read_text().splitlines()]
    path.write_text("\n".join(map(json.dumps, records)))
    load_collection(tmp_path / "c").check_fields(["title", "image"])


def test_a_video_scores_its_best_picture(small):
    made = prepare(small, SplitConfig("query", 0, 1, "all"), pairs=False)
    n, rng = len(made.collection.videos), torch.Generator().manual_seed(0)
    counts = [1 + row % 3 for row in range(n)]
    offsets = [0, *torch.tensor(counts).cumsum(0).tolist()]
    pictures = torch.nn.functional.normalize(torch.randn(offsets[-1], 8, generator=rng), dim=1)
    pictures[0] = pictures[1:].mean(0)  # as a video without a picture has
    questions = torch.nn.functional.normalize(torch.randn(len(made.collection.queries), 8, generator=rng), dim=1)
    with pytest.raises(UserError, match="choose image_embedder=clip"):
        Image(ImageConfig("image"), made.tables)
    made.tables.images = Tables(
        questions, torch.zeros(1, n, 8), torch.ones(n, 8), ["transcript"], PassageVectors.of(pictures, offsets)
    )
    model = Image(ImageConfig("image"), made.tables.select_fields(["title"]))
    rows = torch.tensor([7, 2, 11])
    batch = query_batch(made.collection, made.tables, rows)  # as a hybrid gives it, with the vectors of its texts
    wanted = [[float((pictures[a:b] @ questions[row]).max()) for a, b in pairwise(offsets)] for row in rows]
    torch.testing.assert_close(model.score(batch), torch.tensor(wanted))
    torch.testing.assert_close(model.score_left_out(batch, rows), torch.tensor(wanted))
    assert model.passage_scores(batch, 0) is None
