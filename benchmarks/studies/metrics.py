"""How much faster are the ranking metrics than torchmetrics' retrieval classes?

    python benchmarks/studies/metrics.py [--queries 10000] [--videos 200] [--repeats 3]

Scores of every query against so many videos and three related ones of two grades: ranks and all metrics (MRR, MAP and
recall, precision, hit and nDCG at 1, 5 and 10) here, and the same fourteen by `torchmetrics.retrieval`, which go
through the queries one by one. Both give the same means, which is checked first.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics import MetricCollection, retrieval

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from measured import RESULTS, interleaved, median, ratio, row, write

from dcdt.evaluation.metric import RankingMetrics
from dcdt.evaluation.ranking import judged_ranks, ranking_metrics, tie_order

KS = (1, 5, 10)


def ours(scores: Tensor, judged: Tensor, ties: Tensor) -> dict[str, float]:
    """Means of all metrics."""
    kept = RankingMetrics(KS)
    metrics = ranking_metrics(judged_ranks(scores, judged, ties), torch.ones(judged.shape), 1, KS)
    kept.update(torch.arange(len(scores)), metrics)
    return {name: float(value) for name, value in kept.compute().items()}


def theirs(scores: Tensor, judged: Tensor) -> dict[str, float]:
    """The same by torchmetrics."""
    target = torch.zeros(scores.shape, dtype=torch.int64).scatter_(1, judged, 1)
    rows = torch.arange(len(scores)).unsqueeze(1).expand_as(target)
    parts = {"mrr": retrieval.RetrievalMRR(), "map": retrieval.RetrievalMAP()}
    for k in KS:
        parts[f"recall@{k}"] = retrieval.RetrievalRecall(top_k=k)
        parts[f"precision@{k}"] = retrieval.RetrievalPrecision(top_k=k)
        parts[f"hit@{k}"] = retrieval.RetrievalHitRate(top_k=k)
        parts[f"ndcg@{k}"] = retrieval.RetrievalNormalizedDCG(top_k=k)
    found = MetricCollection(parts, compute_groups=False)
    found.update(scores.flatten(), target.flatten(), indexes=rows.flatten())
    return {name: float(value) for name, value in found.compute().items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default=str(RESULTS / "metrics.json"))
    given = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(given.queries, given.videos, generator=generator)
    judged = torch.rand(scores.shape, generator=generator).topk(3).indices  # (Q, 3)
    ties = tie_order([f"v{at}" for at in range(given.videos)])
    one, other = ours(scores, judged, ties), theirs(scores, judged)
    assert one.keys() == other.keys()
    assert all(abs(one[name] - other[name]) < 1e-5 for name in one), (one, other)
    seconds = interleaved(
        {"ours": lambda: ours(scores, judged, ties) and None, "theirs": lambda: theirs(scores, judged) and None},
        given.repeats,
        warm=0,
    )
    found = ratio(seconds, "theirs", "ours")
    what = f"{len(one)} ranking metrics, {given.queries:,} queries x {given.videos} videos"
    against = f"torchmetrics' retrieval classes, {median(seconds['theirs']):.2f} s"
    write(
        given.out,
        [row(what, 1000 * median(seconds["ours"]), "ms", against, found, ">= 20", found >= 20)],
        given.queries,
    )


if __name__ == "__main__":
    main()
