"""A run's row on W&B: the name that groups its folds, and the metrics that a reader sorts by."""

from collections.abc import Sequence
from typing import Any

import wandb
from omegaconf import DictConfig, OmegaConf

from dcdt.config import as_text, depends_on, model_option, relevant_overrides
from dcdt.training.outcome import Outcome
from dcdt.utils.files import read_json

PAIR_METRICS = ("accuracy", "precision", "recall", "f1", "auroc")
COSTS = ("parameters", "training_seconds", "ms_per_query", "epochs")
COMMON = ("model", "seed", "split.index", "data", "embedder", "logger", "outputs", "callbacks", "sweep", "experiment")


def variant_of(config: DictConfig, overrides: Sequence[str]) -> str:
    """The name that the folds and seeds of one row of a sweep's table share: the option and the choices beside it.

    Args:
        config: of the job, which need not be valid.
        overrides: the choices that are its own.
    """
    model = OmegaConf.select(config, "model")
    skipped, parts = COMMON if "optimizer" in depends_on(model) else (*COMMON, "trainer"), []
    for key, _, text in sorted(
        override.lstrip("+").partition("=") for override in relevant_overrides(overrides, model)
    ):
        if key in skipped or (key.split(".")[0] in skipped and not key.startswith("model.")):
            continue
        value = OmegaConf.select(config, key)
        if OmegaConf.is_list(value) or isinstance(value, float):  # as the report prints them
            text = as_text(OmegaConf.to_container(value) if OmegaConf.is_list(value) else value)
        parts.append(f"{key.removeprefix('split.')}={text}")
    return ", ".join([model_option(model), *parts])


def summary_of(outcome: Outcome) -> dict[str, Any]:
    """The metrics of a finished run that a reader sorts by; its table `results` has all of them."""
    settings, metrics = outcome.settings, outcome.metrics
    k = settings.ks[-1]
    ranked = ["mrr", f"ndcg@{k}", *(f"recall@{k}" for k in settings.ks)]
    chosen = [f"test/{name}" for name in (*ranked, "map", "n_queries")] + [f"test/pair_{name}" for name in PAIR_METRICS]
    chosen += [settings.primary_metric, "val/mrr", f"val/ndcg@{k}", f"val/recall@{k}"]
    chosen += [f"{side}/mrr" for side in outcome.results if side not in ("val", "test")]
    chosen += [f"zero_shot/test/{name}" for name in ("mrr", f"ndcg@{k}")] + ["zero_shot/val/mrr"]
    gaps = {
        f"test/{name}_minus_zero_shot": metrics[f"test/{name}"] - metrics[f"zero_shot/test/{name}"]
        for name in ("mrr", f"ndcg@{k}")
    }
    row = next((row for row in outcome.history if row["epoch"] == outcome.epoch), {})
    costs = read_json(outcome.folder.files.cost)
    return {
        **{name: value for name, value in row.items() if name.startswith("train/")},
        **{name: metrics[name] for name in chosen if name in metrics},
        **gaps,
        **{name: costs[name] for name in COSTS if name in costs},
        "best_epoch": outcome.epoch,
    }


def val_mrr_chart(outcome: Outcome, option: str) -> Any:  # noqa: ANN401 - a chart of wandb
    """A chart of the validation MRR by epoch with that of zero_shot as a level line."""
    rows = [row for row in outcome.history if "val/mrr" in row]
    level = outcome.metrics["zero_shot/val/mrr"]
    return wandb.plot.line_series(
        xs=[row["epoch"] for row in rows],
        ys=[[row["val/mrr"] for row in rows], [level] * len(rows)],
        keys=[option, "zero_shot"],
        title="val/mrr",
        xname="epoch",
    )
