"""A run of every model answers as the model that was trained: scores, order, changes, reasons, mistakes."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save

import dcdt
from dcdt.config.registry import MODELS
from dcdt.data.beir import load_collection
from dcdt.data.types import Documents
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.serving.scorers import SCORERS
from dcdt.serving.scorers.base import query_map
from dcdt.training.checkpoint import restore
from dcdt.utils.errors import UserError
from dcdt.utils.files import read_json, write_json

RIDGE = ("model=hybrid_towers",)
RUNS = [
    ("model=dcdt",),
    ("model=dcdt_attention",),
    ("model=dcdt_candidates",),
    ("model=dcdt_sum",),
    ("model=dcdt_residual",),
    ("model=dcdt_residual", "model.fusion=concat"),
    ("model=dcdt_residual", "model.attention=query"),
    ("model=dcdt_ridge",),
    ("model=zero_shot",),
    ("model=zero_shot_whitened",),
    ("model=single_tower",),
    ("model=bm25",),
    ("model=bm25", "model.backend=bm25s", "model.variant=lucene", "model.stem=true"),
    ("model=collaborative",),
    ("model=hybrid",),
    ("model=hybrid", "model.fusion=rrf"),
    ("model=hybrid", "model@model.second=collaborative"),
    RIDGE,
    ("model=two_stage", "model.depth=8"),
    ("model=two_stage_joint", "model.depth=8"),
    ("model=two_stage_ridge", "model.depth=8"),
    ("model=dcdt_history",),
    ("model=dcdt_hierarchical",),
    ("model=zero_shot_history",),
    ("model=hybrid_history",),
    ("model=dcdt", "trials=2"),
]


def names(overrides):
    return ",".join(overrides)


def test_every_registered_model_has_a_run_here():
    tried = {read for overrides in RUNS for read in [overrides[0].removeprefix("model=")]}
    elsewhere = {"dcdt_encoder", "hybrid_encoder", "image"}  # test_served_encoder.py, test_image_runs.py
    elsewhere.add("federated")  # which is not served: tests/baselines/test_federated.py
    assert set(MODELS) <= tried | elsewhere
    assert {name for scorer in SCORERS.values() for name in scorer.models} <= set(MODELS)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", RUNS, ids=names)
def test_answers_have_the_scores_of_the_run_and_its_state_is_whole(make_run, overrides):
    folder = make_run(*overrides)
    served = dcdt.load(folder)
    collection = load_collection(served.catalogue.run.parents[1] / "small")
    scored = pq.read_table(folder / "scores.parquet").to_pydict()
    wanted = {}
    for query, video, score in zip(scored["query_id"], scored["video_id"], scored["score"], strict=True):
        wanted.setdefault(query, {})[video] = score
    for query, scores in list(wanted.items())[:8]:
        answer = served.recommend(collection.queries.texts[collection.queries.row_of[query]], 1000, explained=True)[0]
        assert [item.rank for item in answer] == list(range(1, len(collection.videos) + 1))
        found = {item.id: item.score for item in answer}
        if served.learners is not None:
            continue  # the run knows who asked; a question alone does not say (test_learners.py)
        candidates = [name for name, score in scores.items() if np.isfinite(score)]
        np.testing.assert_allclose(
            [found[name] for name in candidates], [scores[name] for name in candidates], atol=1e-4
        )
        for item in answer:
            for part in item.why["parts"]:
                kinds = [key for key in ("fields", "terms") if key in part and served.name != "single_tower"]
                for key in kinds:
                    assert sum(part[key].values()) == pytest.approx(part["score"], abs=1e-4)
                if "attention" in part:
                    assert sum(part["attention"].values()) == pytest.approx(1, abs=1e-5)
            if "evidence" in item.why:
                assert sum(item.why["evidence"].values()) == pytest.approx(item.score, abs=1e-6)
            elif served.manifest.fusion is not None and served.manifest.fusion.kind == "convex":
                assert sum(part["share"] for part in item.why["parts"]) == pytest.approx(item.score, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", RUNS[:-1], ids=names)
def test_what_a_field_adds_sums_to_the_video_vector(make_run, overrides):
    restored = restore(make_run(*overrides))
    if not restored.model.decoupled:
        return
    with torch.no_grad():
        vectors = restored.model.encode_videos(restored.tables.videos)
        total = sum(restored.model.field_contributions(restored.tables.videos).values())
    cosine = torch.nn.functional.cosine_similarity(vectors, total, dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [RUNS[0], ("model=dcdt_ridge",), ("model=bm25",), ("model=single_tower",), RIDGE], ids=names
)
def test_new_videos_are_found_edited_ones_change_and_deleted_ones_are_gone(own_copy, overrides):
    folder = own_copy(*overrides)
    served = ServedRecommender(folder)
    n = len(served)
    text = "kernel eigen trace shear plane"
    served.add(Documents(["new"], [text], [text], [{"level": "intro", "url": "https://example.org"}]))
    if overrides == ("model=bm25",):
        assert served.recommend(text, 1)[0][0].id == "new"
    assert {item.id for item in served.recommend(text, 1000)[0]} >= {"new"} and len(served) == n + 1
    assert [item.id for item in served.recommend(text, 5, "level=intro")[0]] == ["new"]
    before = served.recommend("span", 1000)[0]
    served.update(Documents(["new"], ["span"], ["span"], [{}]))
    again = ServedRecommender(folder)  # another process
    assert len(again) == n + 1 and again.recommend("span", 1000)[0] != before
    assert next(item.title for item in again.recommend("span", 1000)[0] if item.id == "new") == "span"
    again.delete(["new", "v3"])
    assert served.catalogue.refresh() == "changed"
    for one in (served, again, ServedRecommender(folder)):
        assert {"new", "v3"}.isdisjoint(item.id for item in one.recommend("span", 1000)[0]) and len(one) == n - 1


@pytest.mark.slow
def test_an_added_video_scores_as_one_that_was_there_when_the_index_was_built(make_run, bench, tmp_path):
    """The towers, the words and the rounding are the same: only what leans on neighbours may differ."""
    served = load(make_run("model=hybrid"))
    shutil.copytree(served.catalogue.run, tmp_path / "run")
    other = ServedRecommender(tmp_path / "run")
    videos = load_collection(bench / "small").videos
    row = videos.row_of["v4"]
    other.delete(["v4"])
    other.add(Documents(["v4"], [videos.titles[row]], [videos.texts[row]], [videos.metadata[row]]))
    for one, two in zip(*(part.recommend("rank basis lesson 4", 1000)[0] for part in (served, other)), strict=True):
        assert (one.id, one.title) == (two.id, two.title)
        assert one.score == pytest.approx(two.score, abs=1e-5)


@pytest.fixture(scope="module")
def served(make_run):
    return load(make_run(*RIDGE))


def test_filters_k_and_abstaining(served):
    everything = served.recommend("rank of a basis", 1000)[0]
    assert len(everything) == 20 and [item.score for item in everything] == sorted(
        (item.score for item in everything), reverse=True
    )
    some = served.recommend(["rank of a basis", "span"], 3, "id=v1|v2|v3|v4")
    assert [len(answer) for answer in some] == [3, 3] and {item.id for item in some[0]} <= {"v1", "v2", "v3", "v4"}
    wanted = {item.id: item.score for item in everything}
    assert all(item.score == pytest.approx(wanted[item.id]) for item in some[0])  # a filter changes no score
    value = served.manifest.threshold.value
    kept = served.recommend("rank of a basis", 1000, abstain=True)[0]
    assert [item.id for item in kept] == [item.id for item in everything if item.score >= value]
    assert served.manifest.threshold.queries > 0 and 0 <= served.manifest.threshold.rejected <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("", 5), "the question is empty"),
        (("  \n ", 5), "the question is empty"),
        (("a" * 100_000, 5), "100,000 characters; at most 2,000"),
        (("a", 0), "k is 0"),
        (("a", 1_000_000), "k is 1000000"),
        (("a", True), "k is True"),
        (("a", 5, "colour=red"), "the field 'colour'"),
        ((["a", None], 5), "a question is NoneType"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_words(served, arguments, said):
    with pytest.raises(UserError) as error:
        served.recommend(*arguments)
    assert said in str(error.value) and len(str(error.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda served: served.add(Documents(["v1"], ["t"], ["t"], [{}])), "the id 'v1' exists already"),
        (lambda served: served.update(Documents(["no"], ["t"], ["t"], [{}])), "no video with the id 'no'"),
        (lambda served: served.delete(["no"]), "no video with the id 'no'"),
        (lambda served: served.delete([f"v{at}" for at in range(20)]), "would leave none"),
    ],
)
def test_changes_that_cannot_be_made_change_nothing(served, change, said):
    before = served.catalogue.pointer
    with pytest.raises(UserError, match=said):
        change(served)
    assert ServedRecommender(served.catalogue.run).catalogue.pointer == before


HARMS = {
    "no run": (lambda run: shutil.rmtree(run), "is not a run"),
    "failed": (lambda run: write_json(run / "status.json", {"status": "failed", "error": "boom"}), "is failed: boom"),
    "no state": (lambda run: (run / "checkpoints" / "best.ckpt").unlink(), "no saved state"),
    "corrupt state": (lambda run: (run / "checkpoints" / "best.ckpt").write_bytes(b"PK\x03\x04"), "corrupt"),
    "pickle": (
        lambda run: torch.save({"state_dict": object}, run / "checkpoints" / "best.ckpt"),
        "corrupt or holds more",
    ),
    "no config": (lambda run: (run / "config.yaml").unlink(), "no saved state (config.yaml)"),
    "config of a stranger": (
        lambda run: (run / "config.yaml").write_text("model:\n  _target_: os.system\n  name: os.system\n"),
        "model.name is 'os.system'",
    ),
    "another collection": (
        lambda run: write_json(run / "provenance.json", {"collection_fingerprint": "0123"}),
        "is not the one",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_run_that_cannot_be_served_says_why(own_copy, harm):
    folder = own_copy("model=bm25")
    shutil.rmtree(folder / "serving")
    HARMS[harm][0](folder)
    with pytest.raises(UserError) as error:
        load(folder)
    assert HARMS[harm][1] in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_an_index_of_another_run_is_refused(own_copy):
    folder = own_copy("model=bm25")
    state = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**state, "epoch": 99}, folder / "checkpoints" / "best.ckpt")
    with pytest.raises(UserError, match="built by another run"):
        load(folder)


@pytest.mark.parametrize("file", ["model.json", "snapshot-1.arrow"])
def test_a_corrupt_build_is_refused(own_copy, file):
    folder = own_copy("model=bm25")
    path = next((folder / "serving").glob(f"*/{file}"))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match="corrupt"):
        load(folder)


@pytest.mark.parametrize("questions", [None, {"weights": "blocks"}], ids=["float32", "8-bit"])
def test_a_build_of_0_1_is_of_another_version(own_copy, questions):
    folder = own_copy("model=bm25")
    path = next((folder / "serving").glob("*/model.json"))
    write_json(path, {**read_json(path), "format": 2, "questions": questions})
    with pytest.raises(UserError, match=rf"of another version\. Run: python -m dcdt\.index {folder} build$"):
        load(folder)


LINEAR = ["dcdt_ridge", "zero_shot_whitened", "hybrid_towers", "dcdt_history"]


@pytest.mark.slow
@pytest.mark.parametrize("model", LINEAR)
def test_a_linear_query_tower_gives_what_its_graph_gives(make_run, model):
    served = load(make_run(f"model={model}"))
    asked = served.embed(["what a span is", "ranks and pivots"])
    linear = [
        scorer.towers
        for scorer, manifest in zip(served.scorers, served.manifest.scorers, strict=True)
        if "is_linear" in type(manifest).model_fields and manifest.is_linear
    ]
    assert linear
    for towers in linear:
        np.testing.assert_allclose(towers.query(asked)[0], towers._query.run(None, {"vectors": asked})[0], atol=1e-6)


def test_a_query_map_that_is_not_the_tower_is_no_export(make_run):
    model = restore(make_run(*RIDGE)).model.second
    assert query_map(model)
    model.linear_query = lambda: 2 * model.query_map + 1
    with pytest.raises(UserError, match="off torch"):
        query_map(model)


def test_whoever_reads_the_description_of_a_build_reads_its_arrays(own_copy):
    folder = next((own_copy(*RIDGE) / "serving").glob("*/model.json")).parent
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir() if path.is_file()}
    assert len(modes) == 1 and "arrays_1.safetensors" in {path.name for path in folder.iterdir()}


ARRAYS = {
    "no file": (lambda arrays: b"", "corrupt"),
    "no map": (lambda arrays: save({**arrays, "query_map": arrays["query_map"][:1]}), "holds no query_map"),
    "another kind": (lambda arrays: save({"query_map": arrays["query_map"].astype("f2")}), "holds no query_map"),
    "no numbers": (lambda arrays: save({"query_map": arrays["query_map"] * np.float32("nan")}), "not finite"),
}


@pytest.mark.parametrize("harm", ARRAYS)
def test_corrupt_arrays_of_a_tower_are_refused(own_copy, harm):
    folder = own_copy(*RIDGE)
    path = next((folder / "serving").glob("*/arrays_1.safetensors"))
    change, said = ARRAYS[harm]
    path.with_name("checksums.json").unlink()  # as whoever makes such a file would
    path.write_bytes(change(load_file(path)))
    with pytest.raises(UserError, match=said):
        load(folder).recommend("span")


@pytest.mark.parametrize("name", ["arrays_1.safetensors", "snapshot-*.arrow", "*.onnx", "embedder/model.onnx"])
def test_a_flipped_bit_in_a_build_is_found_when_it_is_opened(own_copy, name):
    folder = own_copy(*RIDGE)
    paths = list((folder / "serving").glob(f"*/{name}"))
    for path in paths:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x80
        path.unlink()  # it may be a link to the file of another run
        path.write_bytes(content)
    with pytest.raises(UserError, match="checksum") as caught:
        load(folder).recommend("span")
    assert any(str(path.parent) in str(caught.value) for path in paths)


@pytest.mark.parametrize("name", ["*/model.json", "*/embedder/tokenizer.json", "current.json", "*/checksums.json"])
def test_a_changed_digit_in_a_small_file_of_a_build_is_found(own_copy, name):
    folder = own_copy(*RIDGE)
    [path] = (folder / "serving").glob(name)
    content = path.read_text()
    at = [place for place, char in enumerate(content) if char.isdigit()][-1]
    path.unlink()  # it may be a link to the file of another run
    path.write_text("{" if "sums" in name else f"{content[:at]}{9 - int(content[at])}{content[at + 1 :]}")
    with pytest.raises(UserError, match="corrupt") as caught:
        load(folder).recommend("span")
    assert path.name in str(caught.value) and "index" in str(caught.value)


DESCRIPTIONS = {
    "a query tower of no kind": lambda model: [scorer.update(is_linear=1) for scorer in model["scorers"]],
    "a weight beyond any": lambda model: [
        scorer.update(neighbour_weight=1e300) for scorer in model["scorers"] if "neighbour_weight" in scorer
    ],
    "an address that is none": lambda model: model.update(catalogue=0.5),
    "layers of layers": lambda model: model["embedder"].update(layer_weights=[1.0, [1.0]]),
    "a scorer too many": lambda model: model["scorers"].append(model["scorers"][0]),
    "a scorer whose kind is a list": lambda model: model["scorers"][0].update(kind=["towers"]),
    "an embedder whose name is a list": lambda model: model["embedder"].update(name=["local"]),
    "a scorer of no kind": lambda model: model["scorers"][0].update(kind="os.system"),
    "a field that no schema has": lambda model: model.update(command="touch /tmp/x"),
    "a field of a scorer that its schema lacks": lambda model: model["scorers"][0].update(path="/etc"),
    "a weight that is no share": lambda model: model["fusion"].update(weight=1.5),
    "vectors of another width": lambda model: model["scorers"][1].update(width=7, query_width=7),
}


@pytest.mark.parametrize("harm", DESCRIPTIONS)
def test_a_description_that_does_not_fit_is_refused(own_copy, harm):
    folder = own_copy(*RIDGE)
    path = next((folder / "serving").glob("*/model.json"))
    model = read_json(path)
    DESCRIPTIONS[harm](model)
    write_json(path, model)
    with pytest.raises(UserError) as error:
        load(folder).recommend("what is an eigenvector", explained=True)
    assert len(str(error.value).splitlines()) <= 2


def test_building_again_takes_the_place_of_the_old_build_and_keeps_one_before(own_copy):
    from dcdt.serving.export import build

    folder = own_copy("model=bm25")
    names = [read_json(folder / "serving" / "current.json")["build"]]
    for _ in range(2):
        names.append(build(folder).build)
    kept = {path.name for path in (folder / "serving").iterdir() if path.is_dir()}
    assert kept == set(names[1:]) and len(set(names)) == 3
    assert json.loads((folder / "serving" / names[-1] / "model.json").read_text())["model"] == "bm25"


def test_a_change_in_the_middle_of_an_answer_leaves_it_to_the_catalogue_it_began_with(own_copy, monkeypatch):
    served = load(own_copy(*RIDGE))
    wanted = served.recommend("what is an eigenvector", 46)
    scorer = served.scorers[0]
    score = scorer.score

    def score_and_change(query, view):
        served.add(Documents(["late"], ["an eigenvector"], ["what an eigenvector is"], [{}]))
        return score(query, view)

    with monkeypatch.context() as patched:
        patched.setattr(scorer, "score", score_and_change)
        assert served.recommend("what is an eigenvector", 46) == wanted
    assert "late" in {video.id for video in served.recommend("what is an eigenvector", 47)[0]}
