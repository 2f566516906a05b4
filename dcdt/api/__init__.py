"""Train, compare, ask and serve from Python and notebooks."""

from dcdt.api.runs import Report, Run, compare, train

__all__ = ["Report", "Run", "compare", "train"]
