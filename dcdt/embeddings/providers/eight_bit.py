"""An exported sentence model with 8-bit weights: less to read and to multiply for a text, and slightly other vectors.

Two ways of ONNX Runtime, both with activations in 8 bits by the range that a text has:

- `blocks`: a scale for every 128 weights and for every 128 activations of a token (`MatMulNBits`). The more exact one;
  slower than float32 on processors without VNNI.
- `columns`: a scale for each output, one for the activations (`quantize_dynamic`). A few channels of the activations
  are ten times as large as the rest and would set that range alone: they are divided, and their weights multiplied, by
  what brings them down to the others (Xiao et al. 2023, SmoothQuant, for the outliers alone). Weights keep 7 of their 8
  bits, since products of 8 and 8 bits overflow on processors without VNNI.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcdt.embeddings.providers.onnx import MODEL, OnnxEmbedder
from dcdt.utils.errors import UserError
from dcdt.utils.text import one_line

RANGES = 256  # texts from which the range of every channel is read
LEFT_ALONE = 0.98  # share of the channels that are within the range
Feeds = list[dict[str, NDArray[np.int64]]]


def quantise(folder: Path, target: Path, embedder: OnnxEmbedder, texts: Sequence[str], way: str) -> None:
    """Write the 8-bit graph of an exported model.

    Args:
        folder: of the exported model.
        target: file of the new graph.
        embedder: of that model.
        texts: such as are embedded; the first RANGES that are not empty tell the range of every channel.
        way: `blocks` or `columns`.

    Raises:
        UserError: onnx is not installed, or the graph is one that cannot be quantised.
    """
    try:
        import onnx

        model = onnx.load(folder / MODEL)
        _split_attention(model)
        WAYS[way](model, target, embedder, texts)
    except ImportError as error:
        raise UserError(
            "8-bit weights need the extra 'onnx', with onnxruntime 1.22: pip install 'dcdt[onnx]'."
        ) from error
    except OSError:
        raise
    except Exception as error:  # of three libraries, whose errors share no base
        reason = one_line(f"{type(error).__name__} {error}", 120)
        raise UserError(
            f"{embedder.config.package} cannot have 8-bit weights ({reason}). Leave --eight-bit out."
        ) from error


def _blocks(model: Any, target: Path, embedder: OnnxEmbedder, texts: Sequence[str]) -> None:  # noqa: ANN401 - onnx's message
    import onnx

    root, nobody = logging.getLogger(), logging.NullHandler()
    root.addHandler(nobody)  # else the import makes all that is logged in this process appear
    try:
        from onnxruntime.quantization import matmul_nbits_quantizer as nbits
    finally:
        root.removeHandler(nobody)
    nbits.logger.setLevel(logging.ERROR)
    made = nbits.MatMulNBitsQuantizer(model, bits=8, block_size=128, is_symmetric=True, accuracy_level=4)
    made.process()
    onnx.save(made.model.model, target)


def _columns(model: Any, target: Path, embedder: OnnxEmbedder, texts: Sequence[str]) -> None:  # noqa: ANN401
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    feeds = [embedder.inputs([text]) for text in list(filter(None, texts))[:RANGES]]
    _scale_down(model, _largest(model, feeds))
    add_pre_process_metadata(model)  # else a warning that advises what was done here
    kind = {"weight_type": QuantType.QInt8, "per_channel": True, "reduce_range": True}
    quantize_dynamic(model, target, op_types_to_quantize=["MatMul"], **kind)


WAYS: dict[str, Callable[[Any, Path, OnnxEmbedder, Sequence[str]], None]] = {"blocks": _blocks, "columns": _columns}


def _split_attention(model: Any) -> None:  # noqa: ANN401
    """Take the products out of the fused attention (`Attention` becomes `MatMul`, `Split`, `MultiHeadAttention`).

    Where its weights are no constants it stays, in float32.
    """
    from onnx.helper import get_attribute_value, make_node
    from onnx.numpy_helper import from_array, to_array

    graph, nodes = model.graph, []
    constants = {item.name: item for item in graph.initializer}
    joined = {node.output[0]: node.input for node in graph.node if node.op_type == "Concat"}
    for node in graph.node:
        weights = joined.get(node.input[1], [node.input[1]]) if _attends(node) else []
        if not weights or not constants.keys() >= set(weights):
            nodes.append(node)
            continue
        name, heads = node.name, next(get_attribute_value(a) for a in node.attribute if a.name == "num_heads")
        weight = np.concatenate([to_array(constants[part]) for part in weights], axis=1)  # (H, 3H)
        graph.initializer.append(from_array(weight, f"{name}_weight"))
        split = [f"{name}_{part}" for part in ("query", "key", "value")]
        attended = [*split, node.input[2], "", node.input[5] if len(node.input) > 5 else ""]
        nodes += [
            make_node("MatMul", [node.input[0], f"{name}_weight"], [f"{name}_product"], f"{name}_multiply"),
            make_node("Split", [f"{name}_product"], split, f"{name}_split", axis=2, num_outputs=3),
            make_node(
                "MultiHeadAttention", attended, node.output, f"{name}_attend", domain=node.domain, num_heads=heads
            ),
        ]
    _replace_nodes(model, nodes)


def _attends(node: Any) -> bool:  # noqa: ANN401
    """Whether it is a fused attention of the kind we export: a bias, no mask of its own, nothing of the past."""
    if node.op_type != "Attention" or len(node.input) < 3 or any(node.input[3:5]) or any(node.input[6:]):
        return False
    return {item.name for item in node.attribute} <= {"num_heads", "qkv_hidden_sizes"}


def _largest(model: Any, feeds: Feeds) -> dict[str, NDArray[np.float32]]:  # noqa: ANN401
    """The largest magnitude of every channel (C,) that goes into a product with constant weights, by name."""
    from onnx import ModelProto, TensorProto
    from onnx.helper import make_tensor_value_info
    from onnxruntime import InferenceSession

    watched = ModelProto()
    watched.CopyFrom(model)
    names = sorted({node.input[0] for node in _products(model)})
    watched.graph.output.extend([make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])
    session = InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    found = [[np.abs(value).max(axis=(0, 1)) for value in session.run(names, feed)] for feed in feeds]
    return {name: np.max(channels, axis=0) for name, channels in zip(names, zip(*found, strict=True), strict=True)}


def _scale_down(model: Any, largest: dict[str, NDArray[np.float32]]) -> None:  # noqa: ANN401
    """Divide outlying channels before each product, and multiply their weights: the same product."""
    from onnx.helper import make_node
    from onnx.numpy_helper import from_array, to_array

    constants = {item.name: item for item in model.graph.initializer}
    products = {node.name for node in _products(model)}
    nodes = []
    for node in model.graph.node:
        if node.name in products:
            range_of = largest[node.input[0]]
            factor = np.maximum(1, range_of / max(float(np.quantile(range_of, LEFT_ALONE)), 1e-9)).astype(np.float32)
            weight = to_array(constants[node.input[1]]) * factor[:, None]
            made = {"weight": weight.astype(np.float32), "factor": 1 / factor}
            model.graph.initializer.extend([from_array(value, f"{node.name}_{key}") for key, value in made.items()])
            scaled = f"{node.name}_scaled"
            nodes.append(make_node("Mul", [node.input[0], f"{node.name}_factor"], [scaled], f"{node.name}_scale"))
            node.input[:] = [scaled, f"{node.name}_weight"]
        nodes.append(node)
    _replace_nodes(model, nodes)


def _products(model: Any) -> list[Any]:  # noqa: ANN401
    """Products with constant weights (H, W)."""
    constants = {item.name for item in model.graph.initializer if len(item.dims) == 2}
    return [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in constants]


def _replace_nodes(model: Any, nodes: list[Any]) -> None:  # noqa: ANN401
    """Set a graph's nodes, and drop the constants that none of them reads."""
    graph = model.graph
    wanted, kept = {output.name for output in graph.output}, []
    for node in reversed(nodes):
        if wanted & set(node.output):
            wanted |= set(node.input)
            kept.append(node)
    constants = [item for item in graph.initializer if item.name in wanted]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(constants)
