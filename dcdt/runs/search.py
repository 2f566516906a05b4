"""Say what a hyperparameter search found: the best trial's settings, beside the untrained cosine."""

from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dcdt.config import as_text, model_option
from dcdt.runs.folder import run_folders
from dcdt.runs.sweep import OVERRIDES_FILE
from dcdt.utils.files import read_json
from dcdt.utils.shell import shell_command


def describe_search(sweep: Path) -> list[str]:
    """Describe the best trial of a search in lines: its metric beside zero_shot's, its settings rounded, a command."""
    record, runs = read_json(sweep / OVERRIDES_FILE), list(run_folders(sweep))
    finished = [run for run in runs if run.read_status().get("status") == "finished"]
    trials = [(read_json(run.files.metrics), run.read_config()) for run in finished]
    if not trials:
        return []
    primary = str(trials[0][1].primary_metric)
    metrics, config = max(trials, key=lambda trial: trial[0].get(primary, 0.0))
    keys = [f"{side}/{primary[4:]}" for side in ("val", "test")]
    figures = [f"{key} {metrics[key]:.3f} (zero_shot {metrics[f'zero_shot/{key}']:.3f})" for key in keys]
    is_better = all(metrics[key] > metrics[f"zero_shot/{key}"] for key in keys)
    verdict = "better than untrained here; confirm it on folds" if is_better else "no better than untrained"
    asked = OverridesParser.create().parse_overrides(record.get("asked", []))
    settings = [_setting(config, one.key_or_group) for one in asked if one.is_sweep_override()]
    common = [text for text in record.get("common", []) if not text.startswith(("experiment=", "hydra"))]
    return [
        f"best of {len(runs)} trials: {', '.join(figures)}: {verdict}",
        f"its settings: {' '.join(settings)}",
        f"run it: {shell_command('run', *common, *settings)}",
    ]


def _setting(config: DictConfig, key: str) -> str:
    """A setting of a trial as an override, numbers at three digits."""
    value = OmegaConf.select(config, key)
    if isinstance(value, DictConfig):
        value = model_option(value) if key == "model" else value.get("name")
    return f"{key}={as_text(float(f'{value:.3g}') if isinstance(value, float) else value)}"
