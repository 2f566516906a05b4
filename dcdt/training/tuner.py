"""The same tuning effort for every model: a number of trials, each judged on validation alone.

Trial 0 is the configuration as given; the others draw evenly, without repeats, from the model's search space. Test
queries take no part.
"""

import itertools
import logging
import os
import random
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dcdt.config import Settings, parse, search_space
from dcdt.utils.errors import Diverged

log = logging.getLogger("dcdt")


def overrides(model: str, trials: int, seed: int, config: DictConfig | None = None) -> list[dict[str, Any]]:
    """The changes of each trial, the first of which changes nothing; fewer trials where the space is smaller.

    Args:
        model: name of the model.
        trials: how many configurations.
        seed: of the draw.
        config: that the changes start from: it is not drawn again, and keys it lacks (those of another part of a
            hybrid) are not drawn.

    >>> overrides("zero_shot", 8, 0)
    [{}]
    """
    space = search_space(model, config.model if config is not None else None)
    given = {key: OmegaConf.select(config, key) for key in space} if config is not None else {}
    space = {key: values for key, values in space.items() if config is None or given[key] is not None}
    if not space or trials == 1:
        return [{}]
    drawn = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    drawn = [changes for changes in drawn if any(given.get(key) != value for key, value in changes.items())]
    random.Random(seed).shuffle(drawn)  # nosec B311 # repeatable on purpose
    return [{}, *drawn[: trials - 1]]


def search(
    settings: Settings, config: DictConfig, train: Callable[[Settings, int], Any]
) -> tuple[Any, Settings, list[dict[str, Any]]]:
    """Train once a trial and return the best by the primary metric; of equals the first.

    Args:
        settings: trial 0.
        config: the same as composed, which the other trials change.
        train: trains one configuration, given the number of its trial; what it returns has a `value`, the primary
            metric on validation.

    Returns:
        The result of the best trial, its settings, and every trial with its changes and its value; a trial that
        diverged has the value -inf and its error.

    Raises:
        Diverged: every trial did.
    """
    best: tuple[Any, Settings] | None = None
    trials: list[dict[str, Any]] = []
    errors = []
    drawn = overrides(settings.model.name, settings.trials, settings.seed, config)
    for number, changes in enumerate(drawn):
        trial = settings
        if changes:
            changed = config.copy()
            for key, value in changes.items():
                OmegaConf.update(changed, key, value)
            trial = parse(changed)
        try:
            result = train(trial, number)
        except Diverged as error:
            if len(drawn) > 1 and os.environ.get("RANK", "0") == "0":
                log.warning("trial %d of %d: %s", number + 1, len(drawn), str(error).splitlines()[0])
            trials.append({"changes": changes, settings.primary_metric: float("-inf"), "error": str(error)})
            errors.append(error)
            continue
        trials.append({"changes": changes, settings.primary_metric: result.value})
        if best is None or result.value > best[0].value:
            best = (result, trial)
    if best is None:
        raise errors[0]
    return *best, trials
