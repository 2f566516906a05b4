"""Names of the folders of jobs and sweeps, made of the overrides that decide a result."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from dcdt.config.registry import TRAINED, depends_on

IGNORED = ("outputs=", "logger=", "logger.", "callbacks.progress=", "sweep.", "plugins=")  # which decide no result


def relevant_overrides(overrides: Sequence[str], model: object, trials: object = 1) -> list[str]:
    """Leave out the choices of a job that its model does not depend on.

    Args:
        overrides: of the command line, as Hydra gives them to a job.
        model: the model's configuration.
        trials: configurations compared.

    >>> choices = ["model=zero_shot", "loss.margin=0.5", "+sampler=x", "model@loss.teacher=bm25"]
    >>> relevant_overrides([*choices, "split.train_queries=8"], {"name": "zero_shot"})
    ['model=zero_shot']
    """
    skipped = TRAINED - depends_on(model, trials)
    return [text for text in overrides if _setting(text) not in skipped]


def _setting(override: str) -> str:
    """Return the setting of training that an override changes: `loss` for loss=infonce and for loss.margin=1."""
    key = override.split("=")[0].lstrip("+~").split("@")[-1]
    return "train_queries" if key in ("split.train_queries", "split.max_overlap") else key.split(".")[0]


def job_name(overrides: Sequence[str], model: object = None, trials: object = 1) -> str:
    """Name the folder of one job of a sweep: its choices, as far as they fit, and a hash of all of them.

    Choices that the model does not depend on are left out, so that jobs which differ in nothing else are one.
    """
    deciding = [item for item in relevant_overrides(overrides, model, trials) if not item.startswith(IGNORED)]
    named = [item for item in deciding if not item.startswith(("experiment=", "data=", "data.path=", "data.cache="))]
    return f"{folder_name(','.join(named))[:90]}_{_digest(sorted(deciding))}"


def sweep_name(arguments: list[str]) -> str:
    """Name the folder of a sweep: its experiment and a hash of the command line, so that a repeated one finds it."""
    overrides = [item for item in arguments if not item.startswith(("-", "hydra", *IGNORED))]
    given = dict(override.replace("'", "").split("=", 1) for override in overrides if "=" in override)
    path = Path(given.get("data.path", given.get("data", "linear_algebra"))).name
    return f"{folder_name(given.get('experiment', 'sweep'))}_{folder_name(path)}_{_digest(sorted(overrides))}"


def folder_name(text: str) -> str:
    """Replace what does not suit the name of a folder. Only a minus sign becomes a minus sign before a number.

    >>> folder_name("model.fields=[title,text]"), folder_name("optimizer.lr=1e+30"), folder_name("optimizer.lr=1e-30")
    ('model.fields=-title,text-', 'optimizer.lr=1e+30', 'optimizer.lr=1e-30')
    >>> [folder_name(text) for text in ("a=-1", "a=[1]", "a=[-1]", "a={b:1}", "a={b:-1}")]
    ['a=-1', 'a=_1-', 'a=--1-', 'a=-b_1-', 'a=-b--1-']
    >>> folder_name("+a=1"), folder_name("~a"), folder_name("a/b=c d")
    ('+a=1', '-a', 'a-b=c-d')
    """
    text = re.sub(r"[^A-Za-z0-9=.,_+-](?=[0-9.])", "_", text)
    return re.sub(r"[^\x00-\x7f]+|[^A-Za-z0-9=.,_+-]", "-", text)


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
