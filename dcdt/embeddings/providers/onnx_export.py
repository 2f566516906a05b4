"""Export a local sentence model for ONNX Runtime, once, into a folder named by the hash of its weights.

torch's newer exporter is used (`dynamo=True`); the older one gave wrong numbers for this model without an error.
Therefore every export is compared with torch on several lengths before it is renamed into place. Operators that ONNX
Runtime has fused (attention, layer normalisation of sums, GELU with bias) are fused by onnxscript, if that keeps the
numbers.
"""

import logging
import os
import shutil
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
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.files import checksum, remove_abandoned, temporary_folder, write_json

FORMAT = 2
TOLERANCE = 1e-5
EXPORTER = ("onnx", "onnxscript", "onnx_ir")  # modules that torch's exporter imports
NOISY_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir")  # loggers of the exporter: hundreds of lines a graph
SHAPES = ((1, 1), (1, 3), (2, 7), (1, 33), (3, 64), (2, 160))  # of the comparison: texts, tokens


def export_folder(config: LocalEmbedderConfig) -> Path:
    """Return the folder of the exported model of a configuration, which may not exist yet; without torch."""
    layers, pooling = len(config.layer_weights), pooling_of(config)
    name = Path(config.package).resolve().name
    return cache_home() / "onnx" / f"{name}_{weights_hash(config.package)[:16]}_{pooling}-{layers}_v{FORMAT}"


def backend_of(config: LocalEmbedderConfig) -> str:
    """Return `torch` or `onnx`, as configured; by default torch on a GPU, on a CPU ONNX Runtime if installed."""
    if config.backend != "auto":
        return config.backend
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():  # else no need to import torch
        import torch

        if torch.cuda.is_available():
            return "torch"
    ready = (export_folder(config) / RECIPE).is_file()
    needed = ("onnxruntime", "tokenizers") if ready else ("onnxruntime", "tokenizers", "onnxscript")
    return "onnx" if all(find_spec(name) for name in needed) else "torch"


def ensure_exported(config: LocalEmbedderConfig) -> Path:
    """Return the folder of the exported model; if it is missing, export it, which needs torch and some ten seconds.

    Raises:
        UserError: the model, onnxscript or transformers is not installed, the export differs from torch, or the folder
            cannot be written.
    """
    folder = export_folder(config)
    if (folder / RECIPE).is_file():
        return folder
    try:
        remove_abandoned(folder.parent)  # also of other models
        with temporary_folder(folder) as temporary:
            _export(config, temporary)
            _rename_export(temporary, folder)
    except OSError as error:
        raise UserError(
            f"{folder.parent} cannot be written ({error.strerror}). Free some space, set DCDT_CACHE to another folder, "
            "or choose embedder.backend=torch."
        ) from error
    return folder


def _rename_export(temporary: Path, folder: Path) -> None:
    """Rename the finished folder; if another process was first, keep its export."""
    temporary.chmod(0o755)
    try:
        temporary.replace(folder)
    except OSError:
        if not (folder / RECIPE).is_file():
            raise


@contextmanager
def silence_exporter() -> Iterator[None]:
    """Silence the output, logs and warnings of torch's exporter; errors are raised."""
    levels = {name: logging.getLogger(name).level for name in NOISY_LOGGERS}
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere:
        warnings.simplefilter("ignore")
        try:
            for name in NOISY_LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def _export(config: LocalEmbedderConfig, folder: Path) -> None:
    from dcdt.embeddings.providers.pooling import load_model

    model, tokenizer = load_model(config)
    export_model(model, tokenizer, config, weights_hash(config.package), folder)


def export_model(model: Any, tokenizer: Any, config: LocalEmbedderConfig, weights: str, folder: Path) -> None:  # noqa: ANN401
    """Export a loaded model into a folder, and compare it with torch.

    Args:
        model: a `PooledLayers`.
        tokenizer: of the transformers library.
        config: of the embedder.
        weights: hash of its weights.
        folder: to write to.

    Raises:
        UserError: onnxscript is not installed, or the export differs from torch.
    """
    import torch

    example = _random_tokens(model, 3, 17)
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    try:
        with needs_extra("embedder.backend=onnx", "onnx", *EXPORTER), silence_exporter():
            program = torch.onnx.export(
                model,
                tuple(torch.from_numpy(array) for array in example),
                dynamo=True,
                input_names=["input_ids", "attention_mask"],
                output_names=["layers"],
                dynamic_shapes={"input_ids": {0: batch, 1: tokens}, "attention_mask": {0: batch, 1: tokens}},
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(
            f"{config.package} cannot be exported for ONNX Runtime ({str(error).splitlines()[0]}).\n"
            "Choose embedder.backend=torch."
        ) from error
    assert program is not None
    program.save(folder / MODEL, external_data=False)
    _check_against_torch(model, folder / MODEL, config.max_tokens)
    _fuse(program, model, folder / MODEL, config.max_tokens)
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    described = model.model.config
    recipe = {
        "format": FORMAT,
        "model": str(model_folder(config.package).resolve().name),
        "weights": weights,
        "layers": model.layers,
        "pooling": model.pooling,
        "hidden_size": described.hidden_size,
        "pad_token_id": tokenizer.pad_token_id or 0,
        "checksum": checksum(folder / MODEL),
        "tokenizer_checksum": checksum(folder / TOKENIZER),
    }
    write_json(folder / RECIPE, recipe)


def _fuse(program: Any, model: Any, path: Path, longest: int) -> None:  # noqa: ANN401
    """Replace the plain graph by the fused one, unless fusing fails or changes the numbers."""
    fused = path.with_suffix(".fused")
    try:
        with silence_exporter():
            from onnxscript.rewriter.ort_fusions import optimize_for_ort

            optimize_for_ort(program.model)
            program.save(fused, external_data=False)
        _check_against_torch(model, fused, longest)
    except Exception:  # of four libraries, whose errors share no base; the plain graph is right
        fused.unlink(missing_ok=True)
    else:
        fused.replace(path)


def _random_tokens(model: Any, texts: int, length: int) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401
    """Draw random token ids (texts, length) and a mask that makes the first text the shortest."""
    rng = np.random.default_rng(texts * 1000 + length)
    ids = rng.integers(5, model.model.config.vocab_size, (texts, length))
    mask = np.ones_like(ids)
    if texts > 1:
        mask[0, (length + 1) // 2 :] = 0
    return ids, mask


def _check_against_torch(model: Any, path: Path, longest: int) -> None:  # noqa: ANN401
    import torch
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for texts, length in [*SHAPES, (1, longest)]:
        ids, mask = _random_tokens(model, texts, min(length, longest))
        with torch.inference_mode():
            expected = model(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
        (actual,) = session.run(None, {"input_ids": ids, "attention_mask": mask})
        difference = float(np.abs(expected - actual).max())
        if not difference <= TOLERANCE:
            raise UserError(
                f"the exported model is {difference:.2g} off torch at {ids.shape[1]} tokens (limit {TOLERANCE:g}).\n"
                "Choose embedder.backend=torch."
            )
