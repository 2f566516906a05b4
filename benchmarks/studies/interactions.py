"""How well do popularity and implicit's models predict the last course of each learner, from interactions alone?

    python benchmarks/studies/interactions.py [FOLDER] [--max-learners N] [--trials N] [--seed N]

FOLDER holds corpus.jsonl and interactions.csv (default: $DCDT_COLLECTIONS/udemy_interactions). A learner's items count
once, at their first time; learners with three or more take part. The last item of each is held out for test and the
second last for validation: a model's values are chosen among the same number of draws a model, fitted without the last
two items of anybody, by the MRR of 4,000 learners; the chosen ones are fitted again without the last item and tested
on all learners. All items of the catalogue are ranked but those of the learner's own history (nobody takes a course
twice), ties by the hash of the id as everywhere.

Other learners' interactions after the held-out one are seen in fitting: the usual leave-one-out, no forecast.
Prints a Markdown table with n and 95 % bootstrap intervals over learners.
"""

import argparse
import itertools
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from baselines.config import CollaborativeConfig
from baselines.implicit_models import ImplicitModel
from dcdt.data.interactions import Interactions, load_interactions
from dcdt.data.types import Rows
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order
from dcdt.evaluation.statistics import bootstrap_interval
from dcdt.utils.errors import NotApplicable, UserError

FEWEST, VALIDATED, BLOCK, RESAMPLES = 3, 4000, 512, 2000
METRICS = ("mrr", "recall@10", "ndcg@10")
NEIGHBOURS = {"neighbours": [5, 10, 20, 50, 100, 200, 400, 800]}
SPACES: dict[str, dict[str, list[Any]]] = {
    "popularity": {},
    "als": {"factors": [32, 64, 128], "regularization": [0.01, 0.1, 1.0], "alpha": [1.0, 10.0, 40.0]},
    "bpr": {"factors": [32, 64, 128], "regularization": [0.001, 0.01, 0.1], "learning_rate": [0.01, 0.03, 0.1]},
    "cosine": NEIGHBOURS,
    "tfidf": NEIGHBOURS,
    "bm25": NEIGHBOURS,
}
Floats = NDArray[np.float64]


def first_times(watches: Interactions, max_learners: int | None, seed: int) -> list[Rows]:
    """Items of every learner who takes part, in order of their first time; the learners in random order."""
    items: list[dict[int, None]] = [{} for _ in watches.users]
    for user, item in zip(watches.user.tolist(), watches.item.tolist(), strict=True):
        items[user].setdefault(item)
    found = [np.array(list(part), dtype=np.int64) for part in items if len(part) >= FEWEST]
    return random.Random(seed).sample(found, min(len(found), max_learners or len(found)))


def matrix(histories: list[Rows], n_items: int) -> csr_matrix:
    """Learners by items, 1 where an item stands in the history."""
    lengths = np.array([len(part) for part in histories])
    starts = np.concatenate([[0], lengths.cumsum()])
    columns = np.concatenate(histories)
    return csr_matrix((np.ones(len(columns), dtype=np.float32), columns, starts), shape=(len(histories), n_items))


def evaluate(model: ImplicitModel, watched: csr_matrix, held: Rows, ties: torch.Tensor) -> dict[str, Floats]:
    """Per-learner metrics of the held-out items."""
    parts: dict[str, list[Floats]] = {name: [] for name in METRICS}
    for start in range(0, len(held), BLOCK):
        end = min(start + BLOCK, len(held))
        history = watched[start:end]
        scores = model.score_fitted(start, end) if model.learners is not None else model.score(history)
        scores[history.nonzero()] = -np.inf
        judged = torch.from_numpy(held[start:end])[:, None]
        ranks = judged_ranks(torch.from_numpy(scores.astype(np.float32)), judged, ties)
        found = ranking_metrics(ranks, torch.ones_like(ranks), 1)
        for name in METRICS:
            parts[name].append(found[name].double().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def draw(kind: str, trials: int, seed: int) -> list[dict[str, Any]]:
    """Different values of a kind's space, at most `trials`."""
    space = SPACES[kind]
    every = [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
    return random.Random(seed).sample(every, min(trials, len(every)))


def fitted(kind: str, values: dict[str, Any], watched: csr_matrix, seed: int) -> ImplicitModel:
    """One kind with these values, fitted."""
    default: dict[str, Any] = {"factors": 64, "regularization": 0.1, "alpha": 1.0, "learning_rate": 0.01}
    model = ImplicitModel(CollaborativeConfig("collaborative", kind, **{**default, "neighbours": 20, **values}))
    model.fit(watched, seed)
    return model


def report(histories: list[Rows], ids: list[str], trials: int, seed: int) -> None:
    """Tune, test and print every kind."""
    ties, n_items = tie_order(ids), len(ids)
    validation, test = matrix([part[:-2] for part in histories], n_items), matrix([p[:-1] for p in histories], n_items)
    second, last = (np.array([part[at] for part in histories]) for at in (-2, -1))
    unseen = float((np.asarray(test.sum(0)).reshape(-1)[last] == 0).mean())
    print(f"n = {len(histories):,} learners, {test.nnz:,} fitted interactions, {n_items:,} items ranked.")
    print(
        f"The held-out item of {unseen:.1%} of the learners stands in no history, so that no model here can find it.\n"
    )
    print(f"| model | {' | '.join(METRICS)} | trials | chosen |\n|---|{'---|' * len(METRICS)}---|---|")
    for kind in SPACES:
        started = time.perf_counter()
        tried = []
        for values in draw(kind, trials, seed):
            found = evaluate(fitted(kind, values, validation, seed), validation, second[:VALIDATED], ties)
            tried.append((float(found["mrr"].mean()), values))
        chosen = max(tried, key=lambda trial: trial[0])[1]
        found = evaluate(fitted(kind, chosen, test, seed), test, last, ties)
        cells = []
        for name in METRICS:
            low, high = bootstrap_interval(found[name], RESAMPLES)
            cells.append(f"{found[name].mean():.4f} [{low:.4f}, {high:.4f}]")
        listed = ", ".join(f"{key} {value}" for key, value in chosen.items()) or "nothing to choose"
        print(f"| {kind} | {' | '.join(cells)} | {len(tried)} | {listed} |", flush=True)
        print(f"{kind}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Collaborative filtering on interactions alone.")
    default = Path(os.environ.get("DCDT_COLLECTIONS", ".")) / "udemy_interactions"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--max-learners", type=int, default=None, help="draw this many learners (default: all)")
    parser.add_argument("--trials", type=int, default=8, help="configurations compared a model (default: 8)")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        lines = (given.folder / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        ids = [str(json.loads(line)["_id"]) for line in lines]
        watches = load_interactions(given.folder / "interactions.csv", {name: row for row, name in enumerate(ids)})
    except (OSError, UserError, NotApplicable) as error:
        raise SystemExit(f"error: {error}") from None
    report(first_times(watches, given.max_learners, given.seed), ids, given.trials, given.seed)


if __name__ == "__main__":
    main()
