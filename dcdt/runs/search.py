"""Say what a hyperparameter search found: the best trial's settings, beside the untrained cosine."""

from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dcdt.config import as_text, model_option
from dcdt.runs.folder import RunFolder, run_folders
from dcdt.runs.sweep import OVERRIDES_FILE
from dcdt.utils.files import read_json
from dcdt.utils.shell import shell_command


def describe_search(sweep: Path) -> list[str]:
    """Describe the best trial of a search in lines: its metric beside zero_shot's, its settings rounded, a command.

    Args:
        sweep: folder of the trials; without a finished one there is no line.
    """
    record = read_json(sweep / OVERRIDES_FILE)
    asked = OverridesParser.create().parse_overrides(record.get("asked", []))
    keys = [one.key_or_group for one in asked if one.is_sweep_override()]
    runs = list(run_folders(sweep))
    trials = [(run, run.read_config(), read_json(run.files.metrics)) for run in runs if _has_finished(run)]
    trials = [(run, config, metrics) for run, config, metrics in trials if config.primary_metric in metrics]
    if not trials:
        return []
    _, config, metrics = max(trials, key=lambda trial: trial[2][trial[1].primary_metric])
    metric = str(config.primary_metric)
    values = {side: metrics[f"{side}/{metric[4:]}"] for side in ("val", "test")}
    untrained = {side: metrics[f"zero_shot/{side}/{metric[4:]}"] for side in values}
    is_better = all(values[side] > untrained[side] for side in values)
    verdict = "better than untrained here; confirm it on folds" if is_better else "no better than untrained"
    figures = [f"{side} {values[side]:.3f} (zero_shot {untrained[side]:.3f})" for side in values]
    settings = [setting for key in keys if (setting := _setting(config, key))]
    common = [text for text in record.get("common", []) if not text.startswith(("experiment=", "hydra"))]
    return [
        f"best of {len(runs)} trials by {metric}: {', '.join(figures)}: {verdict}",
        f"its settings: {' '.join(settings)}",
        f"run it: {shell_command('run', *common, *settings)}",
    ]


def _has_finished(run: RunFolder) -> bool:
    return run.read_status().get("status") == "finished"


def _setting(config: DictConfig, key: str) -> str:
    """A setting of a trial as an override, numbers at three digits; empty where the trial has none."""
    value = OmegaConf.select(config, key)
    if isinstance(value, DictConfig):
        value = model_option(value) if key == "model" else value.get("name")
    if isinstance(value, float):
        value = float(f"{value:.3g}")
    return (
        ""
        if value is None
        else f"{key}={as_text(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)}"
    )
