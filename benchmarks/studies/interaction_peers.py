"""How do our models of learners compare with those of Cornac and irspack, by one protocol?

    pip install 'dcdt[peers]'
    python benchmarks/studies/interaction_peers.py [FOLDER] --out OUT [--trials 8] [--minutes 30] [--only NAME ...]

FOLDER holds corpus.jsonl and interactions.csv (default: $DCDT_COLLECTIONS/udemy_interactions). Every model is a run of
`dcdt.run` with `split=time`: fitted on the interactions before the cutoff, its values chosen by the learners of
validation among the same number of trials, tested on the same learners, all videos ranked but those the learner has
watched, ties by the hash of the id. `dcdt.report` then makes one table of all with paired tests, and one of the
seconds of each, in OUT/report. Finished runs are skipped when the command is given again.

The peers are the plugin below, `model=peer`: SASRec, GRU4Rec, BERT4Rec (with the masked objective of its paper) and
EASE of Cornac; SLIM, RP3beta and iALS of irspack. They rank by popularity for a learner without a history, as ours do.
A model has --minutes for all its trials; those that are not fitted by then are dropped, and the command says how many.
A model whose first trial is not fitted by then is a row without a result.

Tried on 2026-11-30 with Python 3.11, numpy 2.4, torch 2.13 and transformers 5.23: both libraries install beside them.
LightGCN is left out, since Cornac's needs dgl 1.1 and torch 2.0.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from dcdt import register
from dcdt.config import schema
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.histories import Histories, fittable_watches, held_out_askers
from dcdt.data.interactions import load_interactions
from dcdt.data.tables import Tables
from dcdt.data.types import Rows
from dcdt.models.query_batch import QueryBatch
from dcdt.models.recommender import Recommender
from dcdt.utils.errors import Diverged, needs_extra

SPACES: dict[str, dict[str, list[Any]]] = {  # the first values are those of the first trial
    "sasrec": {
        "n_epochs": [10, 30],
        "embedding_dim": [64, 128],
        "learning_rate": [0.001, 0.003],
        "dropout": [0.2, 0.5],
        "num_blocks": [2, 1],
    },
    "gru4rec": {"n_epochs": [10, 30], "layers": [[64], [128]], "learning_rate": [0.05, 0.1, 0.02]},
    "bert4rec": {
        "n_epochs": [10, 30],
        "embedding_dim": [64, 128],
        "learning_rate": [0.001, 0.003],
        "dropout": [0.2, 0.5],
    },
    "ease": {"lamb": [200.0, 50.0, 100.0, 500.0, 1000.0], "posB": [False, True]},
    "slim": {"alpha": [0.01, 0.05, 0.002, 0.0005], "l1_ratio": [0.0005, 0.01, 0.05]},
    "rp3beta": {"alpha": [1.0, 0.5, 1.5], "beta": [0.6, 0.2, 0.4], "normalize_weight": [False, True]},
    "ials": {"n_components": [64, 32, 128], "alpha0": [0.1, 0.01, 1.0], "reg": [0.001, 0.0001, 0.01]},
}
OURS = {
    **{kind: ["model=collaborative", f"model.kind={kind}"] for kind in ("popularity", "als", "bpr", "bm25")},
    **{f"our_{kind}": ["model=collaborative", f"model.kind={kind}"] for kind in ("ease", "slim")},
    "zero_shot": ["model=zero_shot_history"],
    **{name: [f"model={name}"] for name in ("dcdt_history", "dcdt_hierarchical", "hybrid_ease")},
}
COMMON = [
    *("data=files", "split=time", "trainer=cpu", "trainer.threads=1", "logger=csv"),
    *("callbacks.progress=false", "sweep.report=false"),
]
Scorer = Callable[[csr_matrix, list[Rows]], Any]  # counts (B, N), and rows of videos, oldest first -> scores (B, N)
started: dict[str, float] = {}  # by kind, when its first trial began


def peer_space(model: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the search space of a kind, by the keys of the configuration."""
    return {f"model.values.{key}": values for key, values in SPACES[model.get("kind", "ease")].items()}


def fit_cornac(kind: str, values: dict[str, Any], watched: csr_matrix, sequences: list[Rows], seed: int) -> Scorer:
    """Fit a model of Cornac, which has numbers of its own for the videos that it was fitted on."""
    from cornac import models
    from cornac.data import Dataset, SequentialDataset

    n_videos = watched.shape[1]
    if kind == "ease":
        users, items = watched.nonzero()
        data = Dataset.from_uir(list(zip(users.tolist(), items.tolist(), watched.data.tolist(), strict=True)), seed)
        model = models.EASE(**values, verbose=False).fit(data)
        rows = np.array(list(data.iid_map))  # by Cornac's number

        def score(counts: csr_matrix, histories: list[Rows]) -> Any:  # noqa: ANN401
            scores = np.zeros(counts.shape)
            scores[:, rows] = counts[:, rows] @ model.B
            return scores

        return score
    visits = [(user, item, at) for user, items in enumerate(sequences) for at, item in enumerate(items.tolist())]
    data = SequentialDataset.from_sit(visits, seed=seed)
    classes = {"sasrec": models.SASRec, "gru4rec": models.GRU4Rec, "bert4rec": models.TransformerRec}
    objective = {"backbone": "bert", "objective": "mlm", "loss_at": "all"} if kind == "bert4rec" else {}
    batch_size = min(512, len(sequences))  # GRU4Rec takes no larger one than there are learners
    model = classes[kind](**values, **objective, batch_size=batch_size, seed=seed).fit(data)

    def score_sequences(counts: csr_matrix, histories: list[Rows]) -> Any:  # noqa: ANN401
        scores = np.full((len(histories), n_videos), -np.inf)
        for row, history in enumerate(histories):
            known = [data.iid_map[item] for item in history.tolist() if item in data.iid_map]
            if known:
                with torch.no_grad():
                    scores[row, list(data.iid_map)] = np.asarray(model.score(0, known)).reshape(-1)
        return scores

    return score_sequences


def fit_irspack(kind: str, values: dict[str, Any], watched: csr_matrix, sequences: list[Rows], seed: int) -> Scorer:
    """Fit a model of irspack, on one thread."""
    import irspack

    classes = {"slim": "SLIMRecommender", "rp3beta": "RP3betaRecommender", "ials": "IALSRecommender"}
    seeded = {"random_seed": seed} if kind == "ials" else {}
    model = getattr(irspack, classes[kind])(watched, **values, **seeded, n_threads=1).learn()
    return lambda counts, histories: model.get_score_cold_user(counts.astype(np.float64))


@contextmanager
def time_limit(kind: str, minutes: float) -> Iterator[None]:
    """End a fit when all trials of its kind together have taken so long.

    Raises:
        Diverged: they have; the trial is dropped, and the best of the others is tested.
    """

    def stop(*_: object) -> None:
        raise Diverged(f"{kind}: not fitted within the {minutes:g} minutes of a model.")

    left = started.setdefault(kind, time.monotonic()) + 60 * minutes - time.monotonic()
    if left <= 0:
        stop()
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, left)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


@schema
class PeerConfig:
    """A model of Cornac or irspack: its kind, the values of its constructor, and the minutes of all its trials."""

    name: str
    kind: str
    values: dict[str, Any]
    minutes: float


class Peer(Recommender):
    """A model of another library, fitted on what ours are fitted on, and ranked as ours are.

    Args:
        config: kind, values and minutes.
        tables: not read, but for the number of videos.
    """

    trained_by_epochs: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False
    needs_question = False
    reads_question: ClassVar[bool] = False
    histories: Histories
    scorer: Scorer

    def __init__(self, config: PeerConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config

    def on_prepare(self, data: RankingDataModule) -> None:
        """Fit on the interactions that leak no held-out query."""
        kind, collection = self.config.kind, data.collection
        watches = load_interactions(collection.path / "interactions.csv", collection.videos.row_of)
        self.histories = Histories(watches)
        askers = [asker for side in held_out_askers(data).values() for asker in side]
        keep = fittable_watches(watches, askers, data.split.cutoff)
        user, item = np.unique(watches.user[keep], return_inverse=True)[1].reshape(-1), watches.item[keep]
        watched = csr_matrix((np.ones(len(item)), (user, item)), shape=(user.max() + 1, len(collection.videos)))
        self.popularity = np.asarray(watched.sum(0)).reshape(-1)
        sequences = np.split(item, np.cumsum(np.bincount(user))[:-1])
        fit = fit_irspack if kind in ("slim", "rp3beta", "ials") else fit_cornac
        with needs_extra(f"model.kind={kind}", "peers", "cornac", "irspack"), time_limit(kind, self.config.minutes):
            self.scorer = fit(kind, self.config.values, watched, sequences, data.seed)

    def score(self, queries: QueryBatch) -> Tensor:
        """Score all videos for B learners, (B, N): by popularity without a fitted video, unwatched videos last."""
        askers = list(zip(queries.users, queries.times, strict=True))
        histories = [self.histories.watched_before(user, when) for user, when in askers]
        counts = self.histories.counts(queries.users, queries.times, len(self.popularity))
        scores = np.asarray(self.scorer(counts, histories), dtype=np.float64)
        is_cold = counts @ self.popularity == 0
        scores[is_cold] = self.popularity
        scores[:, self.popularity == 0] = np.where(np.isfinite(scores), scores, np.inf).min(1, keepdims=True) - 1
        return torch.from_numpy(scores.astype(np.float32)).to(self.tables.device)


if __name__.startswith("dcdt_plugin_"):  # named in plugins=[...]
    register("model", "peer", PeerConfig, peer_space, depends_on=["train_queries"])(Peer)


def overrides_of(kind: str, minutes: float) -> list[str]:
    """Return the configuration of a peer, with the values of its first trial."""
    values = [f"+model.values.{key}={json.dumps(choices[0])}" for key, choices in SPACES[kind].items()]
    plugin = f"plugins=[{Path(__file__).resolve()}]"
    return [plugin, "model=peer", f"model.kind={kind}", f"model.minutes={minutes}", *values]


def describe_trials(folder: Path) -> str:
    """Say how many trials of the runs of a folder were fitted in time."""
    trials = [trial for path in folder.glob("*/tuning.json") for trial in json.loads(path.read_text())["trials"]]
    return f"{sum('error' not in trial for trial in trials)} of {len(trials)} trials fitted"


def main() -> None:
    """Run every model, then print the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(os.environ.get("DCDT_COLLECTIONS", ".")) / "udemy_interactions"
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the report")
    parser.add_argument("--trials", type=int, default=8, help="configurations compared a model (default: 8)")
    parser.add_argument("--minutes", type=float, default=30, help="of all trials of a peer together (default: 30)")
    parser.add_argument("--only", nargs="+", choices=[*OURS, *SPACES], help="these models (default: all)")
    given = parser.parse_args()
    models = {**OURS, **{kind: overrides_of(kind, given.minutes) for kind in SPACES}}
    common = [*COMMON, f"data.path={given.folder.resolve()}", f"trials={given.trials}"]
    folders = []
    for name in given.only or models:
        folders.append(given.out.resolve() / name)
        began = time.monotonic()
        command = ["-m", "dcdt.run", "-m", *models[name], *common, f"hydra.sweep.dir={folders[-1]}"]
        done = subprocess.run([sys.executable, *command]).returncode
        seconds = time.monotonic() - began
        print(f"{name}: {'no trial fitted' if done else describe_trials(folders[-1])}, {seconds:.0f} s", flush=True)
    report = ["-m", "dcdt.report", *map(str, folders), "--out", str(given.out.resolve() / "report")]
    raise SystemExit(subprocess.run([sys.executable, *report]).returncode)


if __name__ == "__main__":
    main()
