"""The results of a finished run, as its logger receives them."""

from dataclasses import dataclass
from typing import Any

from dcdt.config import Settings
from dcdt.data.datamodule import RankingDataModule
from dcdt.models.ranking import SideResult
from dcdt.models.recommender import Recommender
from dcdt.runs.folder import RunFolder


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        settings: of the best trial.
        model: with its best weights.
        epoch: of the best validation; -1: before training.
        history: loss and validation per epoch.
        data: batches and sides.
        results: of every side.
        metrics: `side/name` to value, with those of zero_shot.
        figures: by name, as `dcdt.reporting.run_figures` draws them.
        folder: of the run.
    """

    settings: Settings
    model: Recommender
    epoch: int
    history: list[dict[str, float]]
    data: RankingDataModule
    results: dict[str, SideResult]
    metrics: dict[str, float]
    figures: dict[str, Any]
    folder: RunFolder
