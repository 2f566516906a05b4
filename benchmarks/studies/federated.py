"""What do the schools of a federation send and give away, beside what its report says of quality?

    python benchmarks/studies/federated.py SWEEP [SWEEP ...]

Reads the finished runs of `experiment=federated` and prints for each way to fit, as means over the folds: exchanges,
bytes that a school sends in all, and how well membership inference tells fitted from test queries by a school's message
and by the merged model (AUROC; 0.5 is chance), with the least and the largest of the folds.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from dcdt.runs.folder import run_folders

FIGURES = {
    "rounds": "exchanges",
    "bytes": "bytes a school sends",
    "auc_message": "AUROC, message",
    "auc_model": "AUROC, merged model",
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweeps", type=Path, nargs="+")
    figures: dict[str, list[dict[str, float]]] = defaultdict(list)
    for folder in (folder for sweep in parser.parse_args().sweeps for folder in run_folders(sweep)):
        if folder.read_status().get("status") != "finished" or folder.read_config().model.name != "federated":
            continue
        model, metrics = folder.read_config().model, json.loads(folder.files.metrics.read_text())
        if model.fit != "local":
            noise = "" if model.epsilon is None else f", epsilon {model.epsilon:g}"
            figures[model.fit + noise].append(metrics)
    print(f"| fit | folds | {' | '.join(FIGURES.values())} |", "|---|" + "---:|" * (1 + len(FIGURES)), sep="\n")
    for fit, of_folds in figures.items():
        cells = [str(len(of_folds))]
        for name in FIGURES:
            values = np.array([one[key] for one in of_folds if (key := f"federated/{name}") in one])
            is_auc = name.startswith("auc")
            spread = f" ({values.min():.2f} to {values.max():.2f})" if is_auc and len(values) > 1 else ""
            cells.append(
                "" if not len(values) else f"{values.mean():.2f}{spread}" if is_auc else f"{values.mean():,.0f}"
            )
        print(f"| {fit} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
