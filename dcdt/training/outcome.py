"""What a run has found when training and testing are over: what its files, its summary and its logger are made of."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcdt.config import Settings
from dcdt.data.datamodule import RankingDataModule
from dcdt.models.recommender import Recommender, SideResult


@dataclass(frozen=True)
class Outcome:
    """One finished run.

    Attributes:
        settings: of the trial that was chosen.
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
    folder: Path
