"""What a sweep says of itself: which jobs are done already, and a summary at the end."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dcdt.config import job_name, register_resolvers
from dcdt.files import read_json, write_json
from dcdt.watch import SweepWatch

register_resolvers()  # a worker of another launcher unpickles the callback below before it reads the configuration

log = logging.getLogger("dcdt")
FAILED: list[str] = []  # jobs of the last sweep of this process that failed


class SweepSummary(Callback):
    """Watches the jobs of a sweep and counts them by status; Hydra calls it in the parent, whatever the launcher."""

    watch: SweepWatch | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - Hydra's signature
        """Write sweep.json: what was asked for, from which a job knows what it has in common with the others."""
        folder, sweeper = Path(config.hydra.sweep.dir), config.hydra.sweeper
        params = {str(key): str(value) for key, value in (sweeper.get("params") or {}).items()}
        overrides = [str(text) for text in config.hydra.overrides.task]
        write_json(folder / "sweep.json", {"overrides": overrides, "params": params})
        jobs = _jobs([*(f"{key}={value}" for key, value in params.items()), *overrides])
        total = len(jobs) if jobs is not None else sweeper.get("n_trials")
        self.watch = SweepWatch(folder, jobs, total, Console(stderr=True))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:  # noqa: ANN401 - Hydra's signature
        """Read every job's status.json, since a job may have run in another process."""
        if self.watch is not None:
            self.watch.stop()
        folder = Path(config.hydra.sweep.dir)
        found = {path.parent.name: read_json(path) for path in sorted(folder.glob("*/status.json"))}
        statuses = {name: str(facts.get("status", "unreadable")) for name, facts in found.items()}
        FAILED[:] = [name for name, status in statuses.items() if status not in ("finished", "not_applicable")]
        counts = Counter(statuses.values())
        log.warning("sweep: %s", ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
        for name in FAILED:
            log.warning("  %s: %s", name, found[name].get("error", "did not finish"))
        log.warning("tables: python -m dcdt.report %s", folder)


def differing(overrides: Sequence[str], folder: Path) -> list[str]:
    """The choices of a job that are its own; those that the sweep in `folder` gives all its jobs are left out."""
    given = read_json(folder / "sweep.json")
    common = {*given.get("overrides", []), *(f"{key}={value}" for key, value in given.get("params", {}).items())}
    return [text for text in overrides if text not in common]


def _jobs(overrides: list[str]) -> list[str] | None:
    """Folders of the jobs of a sweep over all combinations; None where a sweeper chooses as it goes."""
    found = OverridesParser.create().parse_overrides(overrides)
    sweeps = [override for override in found if override.is_sweep_override()]
    listed = (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP, ValueType.RANGE_SWEEP)
    if not all(override.value_type in listed for override in sweeps):
        return None
    [jobs] = BasicSweeper.split_arguments(found, None)
    return [job_name(job) for job in jobs]


def fingerprint(config: DictConfig, collection: str, code: str) -> str:
    """What decides a job's result: its configuration (not where it logs or writes), the data and the code."""
    parts = OmegaConf.to_container(config, resolve=True)
    assert isinstance(parts, dict)
    deciding = {
        str(key): value for key, value in parts.items() if key not in ("logger", "outputs", "callbacks", "resume")
    }
    deciding["callbacks"] = {**parts["callbacks"], "progress": None, "checkpoint_seconds": None}
    return hashlib.sha256(json.dumps([deciding, collection, code], sort_keys=True).encode()).hexdigest()[:16]
