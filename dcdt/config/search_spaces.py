"""The values that tuning draws from, by model."""

from typing import Any

_TOWERS: dict[str, list[Any]] = {
    "optimizer.lr": [1e-3, 3e-4, 3e-3],
    "loss.margin": [1.0, 0.7, 1.4],
    "loss.temperature": [0.05, 0.02, 0.1],  # of each, the losses without it draw none
    "model.dropout": [0.2, 0.0, 0.5],
    "optimizer.weight_decay": [0.01, 0.1],
}


SPACES: dict[str, dict[str, list[Any]]] = {
    "dcdt": _TOWERS,
    "dcdt_residual": {
        **_TOWERS,
        "optimizer.lr": [3e-4, 1e-4, 1e-3],
        "model.dropout": [0.0, 0.1, 0.3],
        "model.rank": [64, 16, 256],
    },
    "single_tower": {**_TOWERS, "loss.margin": [1.0, 0.7, 0.4]},  # its distance 1 - s never passes 1
    "bm25": {
        "model.variant": ["okapi", "l", "plus"],
        "model.k1": [1.5, 0.8, 1.2, 2.0],
        "model.b": [0.75, 0.4, 0.9],
        "model.stop_words": [True, False],
    },
    "dcdt_ridge": {  # beside its penalty, which every trial chooses for itself
        "model.whiten": ["soft", "none"],
        "model.neighbour_weight": [0.3, 0.0],
    },
    "two_stage": {  # beside its penalty, which every trial chooses for itself
        "model.depth": [50, 20, 100],
        "model.whiten": ["soft", "none"],
    },
    "two_stage_joint": {
        "optimizer.lr": [3e-4, 1e-4, 1e-3],
        "model.rank": [16, 8, 32],
        "model.dropout": [0.5, 0.2],
        "optimizer.weight_decay": [1.0, 0.1],
    },
    "dcdt_history": {
        "model.epochs": [5, 3, 8],
        "model.lr": [2e-3, 1e-3, 4e-3],
        "model.dropout": [0.3, 0.1, 0.5],
    },
    "collaborative": {  # those of kind=als; of the other kinds below
        "model.factors": [32, 8, 16, 64, 128],
        "model.regularization": [0.1, 0.01, 1.0],
        "model.alpha": [10.0, 1.0, 40.0],
    },
    "hybrid": {  # beside the weight of fusion=convex, which every trial chooses for itself
        "model.fusion": ["convex", "rrf"],
        "model.first.variant": ["okapi", "l", "plus"],
        "model.first.k1": [1.5, 0.8],
        "model.first.b": [0.75, 0.4, 0.9],
    },
}


_NEIGHBOURS: dict[str, list[Any]] = {"model.neighbours": [20, 5, 10, 50, 100, 200, 400, 800]}


KINDS: dict[str, dict[str, list[Any]]] = {  # of model.kind, which collaborative alone has
    "als": SPACES["collaborative"],
    "bpr": {
        "model.factors": [32, 8, 16, 64, 128],
        "model.regularization": [0.1, 0.01, 1.0],
        "model.learning_rate": [0.01, 0.003, 0.03],
    },
    "cosine": _NEIGHBOURS,
    "tfidf": _NEIGHBOURS,
    "bm25": _NEIGHBOURS,
    "popularity": {},
}


FUSED: dict[str, dict[str, list[Any]]] = {  # a hybrid's, by the name of model.first where it is not bm25
    "collaborative": {
        "model.fusion": ["convex", "rrf"],
        "model.first.neighbours": _NEIGHBOURS["model.neighbours"],
        "model.second.epochs": [5, 3, 8],
        "model.second.dropout": [0.3, 0.1, 0.5],
    },
}
