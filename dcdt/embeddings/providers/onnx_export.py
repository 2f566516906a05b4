"""Export a local sentence model for ONNX Runtime, once: a folder named by the hash of its weights, whole or not at all.

torch's newer exporter is used (`dynamo=True`); the older one gave wrong numbers for this model without an error.
Therefore every export is compared with torch on several lengths before it gets its name. What ONNX Runtime has as one
operator (attention, sums that are normalised, GELU with its bias) is fused by onnxscript, where that keeps the numbers.
"""

import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from dcdt.config import cache_home
from dcdt.embeddings.config import LocalEmbedderConfig
from dcdt.embeddings.providers.local_models import model_folder, pooling_of, weights_hash
from dcdt.embeddings.providers.onnx import MODEL, RECIPE, TOKENIZER
from dcdt.utils.errors import UserError
from dcdt.utils.files import write_json

FORMAT = 2
TOLERANCE = 1e-5
CHATTY = ("torch.onnx", "onnxscript", "onnx_ir")  # loggers of the exporter: hundreds of lines a graph
SHAPES = ((1, 1), (1, 3), (2, 7), (1, 33), (3, 64), (2, 160))  # of the comparison: texts, tokens


def export_folder(config: LocalEmbedderConfig) -> Path:
    """Where the exported model of a configuration lies, there or not; found without torch."""
    layers, pooling = len(config.layer_weights), pooling_of(config)
    name = Path(config.package).resolve().name
    return cache_home() / "onnx" / f"{name}_{weights_hash(config.package)[:16]}_{pooling}-{layers}_v{FORMAT}"


def backend_of(config: LocalEmbedderConfig) -> str:
    """`torch` or `onnx`, as asked; by itself torch on a GPU, on a CPU ONNX Runtime where it is installed."""
    if config.backend != "auto":
        return config.backend
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():  # else no need to import torch
        import torch

        if torch.cuda.is_available():
            return "torch"
    ready = (export_folder(config) / RECIPE).is_file()
    needed = ("onnxruntime", "tokenizers") if ready else ("onnxruntime", "tokenizers", "onnxscript")
    return "onnx" if all(find_spec(name) for name in needed) else "torch"


def exported(config: LocalEmbedderConfig) -> Path:
    """The folder of the exported model, made first where it is missing (which needs torch, and ten seconds or so).

    Raises:
        UserError: the model, onnxscript or transformers is not installed, the export differs from torch, or the folder
            cannot be written.
    """
    folder = export_folder(config)
    if (folder / RECIPE).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror}). Set DCDT_CACHE to a folder that can, "
            "or choose embedder.backend=torch."
        ) from error
    try:
        _export(config, temporary)
        _place(temporary, folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}). Free some space.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _place(temporary: Path, folder: Path) -> None:
    """Rename the finished folder; where another process was first, its export stands."""
    temporary.chmod(0o755)
    try:
        temporary.replace(folder)
    except OSError:
        if not (folder / RECIPE).is_file():
            raise


@contextmanager
def quietly() -> Iterator[None]:
    """What torch's exporter and its optimizer print, log and warn of goes nowhere; errors are raised as ever."""
    levels = {name: logging.getLogger(name).level for name in CHATTY}
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere:
        warnings.simplefilter("ignore")
        try:
            for name in CHATTY:
                logging.getLogger(name).setLevel(logging.ERROR)
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _export(config: LocalEmbedderConfig, folder: Path) -> None:
    import torch

    from dcdt.embeddings.providers.pooling import load_model

    model, tokenizer = load_model(config)
    example = _tokens(model, 3, 17)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    try:
        with quietly():
            program = torch.onnx.export(
                model,
                tuple(torch.from_numpy(part) for part in example),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["layers"],
                dynamic_shapes={"input_ids": {0: batch, 1: tokens}, "attention_mask": {0: batch, 1: tokens}},
            )
    except ImportError as error:
        raise UserError("embedder.backend=onnx needs the extra 'onnx': pip install 'dcdt[onnx]'.") from error
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{config.package} cannot be exported for ONNX Runtime ({str(error).splitlines()[0]}).\n"
            "Choose embedder.backend=torch."
        ) from error
    assert program is not None
    program.save(folder / MODEL, external_data=False)
    _compare(model, folder / MODEL, config.max_tokens)
    _fuse(program, model, folder / MODEL, config.max_tokens)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    described = model.model.config
    recipe = {
        "format": FORMAT,
        "model": str(model_folder(config.package).resolve().name),
        "weights": weights_hash(config.package),
        "layers": model.layers,
        "pooling": model.pooling,
        "hidden_size": described.hidden_size,
        "pad_token_id": tokenizer.pad_token_id or 0,
    }
    write_json(folder / RECIPE, recipe)


def _fuse(program: Any, model: Any, path: Path, longest: int) -> None:  # noqa: ANN401
    """Put the fused graph in the place of the plain one, which stays where that fails or gives other numbers."""
    fused = path.with_suffix(".fused")
    try:
        with quietly():
            from onnxscript.rewriter.ort_fusions import optimize_for_ort

            optimize_for_ort(program.model)
            program.save(fused, external_data=False)
        _compare(model, fused, longest)
    except Exception:  # of four libraries, whose errors share no base; the plain graph is right
        fused.unlink(missing_ok=True)
    else:
        fused.replace(path)


def _tokens(model: Any, texts: int, length: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Random token ids (texts, length) and a mask under which the first text is the shortest."""
    rng = np.random.default_rng(texts * 1000 + length)
    ids = rng.integers(5, model.model.config.vocab_size, (texts, length))
    mask = np.ones_like(ids)
    if texts > 1:
        mask[0, (length + 1) // 2 :] = 0
    return ids, mask


def _compare(model: Any, path: Path, longest: int) -> None:  # noqa: ANN401
    import torch
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for texts, length in [*SHAPES, (1, longest)]:
        ids, mask = _tokens(model, texts, min(length, longest))
        with torch.inference_mode():
            wanted = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        (found,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        worst = float(np.abs(wanted - found).max())
        if not worst <= TOLERANCE:
            raise UserError(
                f"the exported model is {worst:.2g} off torch at {ids.shape[1]} tokens (limit {TOLERANCE:g}).\n"
                "Choose embedder.backend=torch."
            )
