"""Recommend teaching videos to a learner who asks a question in words."""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcdt.utils.signals import end_in_one_line

if TYPE_CHECKING:
    from dcdt.api import compare, train
    from dcdt.config.registry import register
    from dcdt.evaluation.evaluate import evaluate
    from dcdt.serving.load import load

__version__ = "0.2.0"
__all__ = ["compare", "evaluate", "load", "register", "train"]
_MODULES = {
    "compare": "dcdt.api",
    "evaluate": "dcdt.evaluation.evaluate",
    "load": "dcdt.serving.load",
    "register": "dcdt.config.registry",
    "train": "dcdt.api",
}


if sys.argv[:1] == ["-m"] or Path((sys.argv or [""])[0]).name == "dcdt":  # a command, whose imports take seconds
    end_in_one_line()


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a function of the API, imported at its first use
    if name not in _MODULES:
        raise AttributeError(f"module 'dcdt' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
