"""Export a run as a sentence-transformers model: its encoder, a dense layer or two for each tower, a model card."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcdt.api import Run
from dcdt.embeddings.providers.local_models import model_folder, pooling_of
from dcdt.reporting import render
from dcdt.reporting.tables import make_report
from dcdt.runs.reader import read_runs
from dcdt.serving.export import model_name
from dcdt.training.checkpoint import Restored, restore, run_settings
from dcdt.utils.errors import UserError, needs_extra
from dcdt.utils.files import read_limited, temporary_folder, write_text

with needs_extra("exporting to sentence-transformers", "local", "sentence_transformers"):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Router, Transformer

    from dcdt.adapters.layer_pooling import LayerPooling

LINEAR = ("zero_shot", "dcdt_ridge", "dcdt_encoder")  # registered names of models whose towers are matrices
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, dcdt]
---
# {summary}

`SentenceTransformer(FOLDER{trust})`. `encode` and `encode_query` are the query tower, `encode_document` is the video
tower for a video of which one text is known{smoothing}. Scores are dot products.

## Data and protocol

{facts}

{table}"""


def export_run(run: Path, out: Path) -> str:
    """Write the towers of a run to a new folder; return the Python that loads it.

    Raises:
        UserError: the folder exists, or the run's model is not one map of a text to a vector by a local encoder.
    """
    if out.exists():
        raise UserError(f"{out} exists already; name a new folder.")
    if (embedder := run_settings(run).embedder).name != "local":
        raise UserError(
            f"embedder={embedder.name} is no encoder that a sentence-transformers folder can hold.\n"
            "Export a run with embedder=local; dcdt.load answers with any."
        )
    restored = restore(run)
    model = SentenceTransformer(
        modules=[*_encoder(restored.model, embedder), Router(_towers(restored), default_route="query")],
        prompts={"query": embedder.prefix, "document": embedder.prefix},
        default_prompt_name="query",
        similarity_fn_name="dot",
        device="cpu",
    )
    trust = ", trust_remote_code=True" if len(embedder.layer_weights) > 1 else ""
    with temporary_folder(out) as temporary:
        model.save(str(temporary), create_model_card=False)
        if trust:  # the module lies in the folder, and is named as sentence-transformers looks for it there
            shutil.copy(Path(__file__).with_name("layer_pooling.py"), temporary)
            modules = read_limited(temporary / "modules.json").replace("dcdt.adapters.layer_pooling", "layer_pooling")
            write_text(temporary / "modules.json", modules)
        weight, report = restored.model.neighbour_weight, make_report(read_runs([run]))
        card = CARD.format(
            summary=Run(run).summary,
            trust=trust,
            smoothing=f", before it is smoothed with its nearest videos (weight {weight:g})" if weight else "",
            facts="\n".join(f"- {name}: {value}" for name, value in report.metadata.items()),
            table=render.markdown(report.tables[:1]),
        )
        write_text(temporary / "README.md", card)
        temporary.chmod(0o755)
        temporary.rename(out)
    return f'SentenceTransformer("{out}"{trust})'


def _encoder(model: Any, config: Any) -> list[Any]:  # noqa: ANN401
    """Return the modules of the encoder, with the weights that the model has trained, if any."""
    n_layers = len(config.layer_weights)
    transformer = Transformer(
        str(model_folder(config.package)),
        max_seq_length=config.max_tokens,
        model_kwargs={"use_safetensors": True, "local_files_only": True, "dtype": torch.float32},
        config_kwargs={"output_hidden_states": n_layers > 1},
    )
    if model.reads_tokens:
        transformer.model.load_state_dict(model.served_encoder()[0].model.state_dict())
    width, pooling = transformer.model.config.hidden_size, pooling_of(config)
    if n_layers > 1:
        return [transformer, LayerPooling(config.layer_weights, pooling, width)]
    return [transformer, Pooling(width, pooling), Normalize()]


def _towers(restored: Restored) -> dict[str, list[Any]]:
    """Return the modules of the query tower, and of the video tower where all fields are the same text."""
    model: Any = restored.model
    has_attention = getattr(restored.settings.model, "attention", "none") != "none"
    if model_name(model) not in (*LINEAR, "dcdt") or has_attention or model.histories or model.pooling:
        raise UserError(
            f"model={restored.settings.option} is not one map of a text to a vector, so that sentence-transformers "
            "cannot hold it: attention, histories, transcripts and what reads words are none.\n"
            "Export a run of dcdt_ridge, dcdt, dcdt_sum, dcdt_encoder or zero_shot; dcdt.load answers with any."
        )
    if model_name(model) in LINEAR:
        eye, matrix = torch.eye(model.tables.width), model.linear_query()
        total = sum(model.field_contributions(eye.expand(len(model.tables.fields), -1, -1)).values())  # (D, W)
        return {"query": _tower((eye if matrix is None else matrix).T), "document": _tower(total.T)}
    query, fields, fusion = model.query_tower.linear, [tower.linear for tower in model.field_towers], model.fusion
    inner = (torch.cat([one.weight for one in fields]), torch.cat([one.bias for one in fields]))  # (F * W, D), (F * W)
    summed = torch.eye(len(query.bias)).repeat(1, len(fields)), torch.zeros(len(query.bias))  # (W, F * W), (W)
    outer = summed if fusion is None else (fusion.weight, fusion.bias)
    return {
        "query": _tower(query.weight, query.bias, nn.ReLU()),
        "document": [*_tower(*inner, nn.ReLU())[:1], *_tower(*outer)],
    }


def _tower(weight: Any, bias: Any = None, activation: nn.Module | None = None) -> list[Any]:  # noqa: ANN401
    """Return a dense layer with a weight (out, in) and a normalisation."""
    own, own_bias = (None if tensor is None else tensor.detach().clone().contiguous() for tensor in (weight, bias))
    return [Dense(weight.shape[1], weight.shape[0], bias is not None, activation, own, own_bias), Normalize()]
