"""8-bit weights: the graph computes what the float32 one does, up to rounding, by both ways."""

import logging

import numpy as np
import pytest
from embeddings.tiny import write_model
from support import EMBEDDER

from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers import eight_bit
from dcdt.embeddings.providers.eight_bit import WAYS, quantise
from dcdt.embeddings.providers.onnx import MODEL, OnnxEmbedder
from dcdt.embeddings.providers.onnx_export import exported
from dcdt.utils.errors import UserError

TEXTS = ["rank", "span of a basis", "Kernel and image " * 5, "unknown words here", "pivot", "eigen trace shear plane"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["fused", "plain"])
def tiny(request, tmp_path_factory):
    """Configuration of a small model, wide enough for blocks of 128; exported with and without fused operators."""
    folder = write_model(tmp_path_factory.mktemp("models") / request.param, hidden=160)
    changes = {"package": str(folder), "layer_weights": [0.2, 1.0], "max_tokens": 32, "batch_tokens": 60}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DCDT_CACHE", str(tmp_path_factory.mktemp("cache")))
        if request.param == "plain":
            patch.setattr("dcdt.embeddings.providers.onnx_export._fuse", lambda *given: None)
        config = LocalEmbedderConfig(**{**vars(EMBEDDER), **changes})
        exported(config)
        yield config


def load(folder):
    return pytest.importorskip("onnx").load(folder / MODEL)


def cosines(one, other):
    return (one * other).sum(1)


@pytest.mark.parametrize("way", WAYS)
def test_8_bit_vectors_are_close_to_those_of_float32(tiny, way, tmp_path):
    folder = exported(tiny)
    before = logging.getLogger().handlers[:], logging.getLogger().level
    quantise(folder, tmp_path / "made.onnx", OnnxEmbedder(folder, tiny), TEXTS, way)
    assert (logging.getLogger().handlers, logging.getLogger().level) == before
    whole, fast = OnnxEmbedder(folder, tiny), OnnxEmbedder(folder, tiny, graph=tmp_path / "made.onnx")
    wanted, found = whole.embed(TEXTS), fast.embed(TEXTS)
    assert 0.97 < cosines(wanted, found).min() < 1 - 1e-7
    assert (tmp_path / "made.onnx").stat().st_size < 0.75 * (folder / MODEL).stat().st_size
    if way == "blocks":  # every token has scales of its own, so what else is in the batch does not count
        alone = np.concatenate([fast.embed([text]) for text in TEXTS])
        np.testing.assert_allclose(alone, found, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_no_product_with_constants_stays_in_float32(tiny, way, tmp_path):
    onnx = pytest.importorskip("onnx")
    quantise(exported(tiny), tmp_path / "made.onnx", OnnxEmbedder(exported(tiny), tiny), TEXTS, way)
    model = onnx.load(tmp_path / "made.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert eight_bit._products(model) == [] and "Attention" not in kinds
    assert ("MatMulNBits" if way == "blocks" else "MatMulInteger") in kinds


def test_splitting_and_scaling_change_no_product(tiny, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = exported(tiny)
    embedder, model = OnnxEmbedder(folder, tiny), load(folder)
    weights = len(eight_bit._products(model))
    eight_bit._split_attention(model)
    fused = any(node.op_type == "Attention" for node in load(folder).graph.node)
    assert len(eight_bit._products(model)) == weights + 3 * fused  # one for each layer
    largest = eight_bit._largest(model, [embedder.inputs([text]) for text in TEXTS])
    eight_bit._scale_down(model, largest)
    onnx.save(model, tmp_path / "made.onnx")
    found = OnnxEmbedder(folder, tiny, graph=tmp_path / "made.onnx").embed(TEXTS)
    np.testing.assert_allclose(found, embedder.embed(TEXTS), atol=1e-5)
    assert any(node.name.endswith("_scale") for node in model.graph.node)


def test_outlying_channels_are_brought_into_the_range_of_the_others(tiny, tmp_path):
    folder = exported(tiny)
    model = load(folder)
    eight_bit._split_attention(model)
    feeds = [OnnxEmbedder(folder, tiny).inputs([text]) for text in TEXTS]
    eight_bit._scale_down(model, before := eight_bit._largest(model, feeds))
    after = eight_bit._largest(model, feeds)
    assert len(after) == len(eight_bit._products(model))
    for node in model.graph.node:
        if node.name.endswith("_scale"):
            limit = np.quantile(before[node.input[0]], eight_bit.LEFT_ALONE)
            wanted = np.minimum(before[node.input[0]], limit)
            np.testing.assert_allclose(after[node.output[0]], wanted, rtol=1e-4)


def test_a_graph_that_cannot_be_quantised_is_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(eight_bit, "_split_attention", lambda model: model.graph.node[0].no_such_field)
    with pytest.raises(UserError, match="cannot have 8-bit weights"):
        quantise(exported(tiny), tmp_path / "made.onnx", OnnxEmbedder(exported(tiny), tiny), TEXTS, "columns")
    assert list(tmp_path.iterdir()) == []
