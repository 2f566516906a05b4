"""Collaborative filtering on a matrix of learners by videos, fitted by the library implicit or by `linear.py`.

Only a matrix of the videos (factors, or similarities) is kept of a fitted model, so that any history can be scored,
also one the model was not fitted on.
"""

import warnings
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from implicit.als import AlternatingLeastSquares
from implicit.bpr import BayesianPersonalizedRanking
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, TFIDFRecommender
from implicit.utils import ParameterWarning
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, issparse
from threadpoolctl import threadpool_limits

from dcdt.models.bpr import EPOCHS, bpr_learners

from .config import LINEAR, CollaborativeConfig
from .linear import fit_ease, fit_ease_gram, fit_slim

Floats = NDArray[np.floating[Any]]
ITERATIONS = {"als": 15, "bpr": EPOCHS}
ITEM_ITEM = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}


class ImplicitModel:
    """A model of one kind: als, bpr, item-item cosine, tfidf or bm25, ease, slim, or popularity.

    Repeatable: one thread, one BLAS thread, a seed, and float64 similarities.

    Args:
        config: the kind and its values.
    """

    def __init__(self, config: CollaborativeConfig) -> None:
        self.config = config
        self.popularity = np.zeros(0)  # (N,) number of fitted interactions
        self.items: Any = None  # (N, F) factors, the bias of bpr last; or (N, N) weights, csr but for ease
        self.learners: Floats | None = None  # (U, F) factors of the fitted learners; not saved

    def fit(self, watched: csr_matrix, seed: int) -> None:
        """Fit on counts of interactions (U, N)."""
        kind, config = self.config.kind, self.config
        self.popularity = np.asarray(watched.sum(0), dtype=np.float64).reshape(-1)
        common = {"num_threads": 1, "random_state": seed, "iterations": ITERATIONS.get(kind), "use_gpu": False}
        with threadpool_limits(1, "blas"):
            if kind == "als":
                model = AlternatingLeastSquares(config.factors, config.regularization, config.alpha, **common)
            elif kind == "bpr":
                model = BayesianPersonalizedRanking(
                    config.factors, config.learning_rate, config.regularization, **common
                )
            elif kind in LINEAR:
                self.items = fit_ease(watched, config.l2) if kind == "ease" else fit_slim(watched, config.l1, config.l2)
                return
            elif kind in ITEM_ITEM:
                model = ITEM_ITEM[kind](K=config.neighbours, num_threads=1)
            else:
                return
            with warnings.catch_warnings(), np.errstate(invalid="ignore"):
                warnings.simplefilter("ignore", ParameterWarning)  # its item-item kinds pass themselves another format
                model.fit(watched.astype(np.float64 if kind in ITEM_ITEM else np.float32), show_progress=False)
        if kind in ITEM_ITEM:
            self.items = model.similarity
            self.items.data[:] = np.nan_to_num(self.items.data)  # tfidf of a video only by learners of weight 0
        else:
            self.items, self.learners = model.item_factors, model.user_factors

    def fit_sums(self, gram: NDArray[np.float64], popularity: NDArray[np.float64]) -> None:
        """Fit ease from the sums (N, N), changed in place, of `x x'` and (N,) of x over the learners' counts x."""
        self.popularity = np.maximum(popularity, 0)
        with threadpool_limits(1, "blas"):
            self.items = fit_ease_gram(gram, self.config.l2)

    def has_known_video(self, histories: csr_matrix) -> NDArray[np.bool_]:
        """Return whether each history (B, N) has a video that the model was fitted on, (B,)."""
        return np.asarray(histories @ (self.popularity > 0)).reshape(-1) > 0

    def score(self, histories: csr_matrix) -> Floats:
        """Score all videos for learners by their interactions, counted or weighted, both (B, N).

        A history without a fitted video is scored by popularity; videos without a watch come last.
        """
        scores = np.tile(self.popularity, (histories.shape[0], 1))
        is_known = self.has_known_video(histories)
        if self.items is not None and is_known.any():
            with threadpool_limits(1, "blas"):
                scores[is_known] = self._score(histories[is_known])
        unwatched = self.popularity == 0
        scores[:, unwatched] = scores.min(1, keepdims=True) - 1
        return scores

    def score_fitted(self, start: int, end: int) -> Floats:
        """Score all videos for the fitted learners from `start` to `end`, by their own factors (als, bpr)."""
        assert self.learners is not None
        scores = np.asarray(self.learners[start:end] @ self.items.T, dtype=np.float64)
        unwatched = self.popularity == 0
        scores[:, unwatched] = scores.min(1, keepdims=True) - 1
        return scores

    def _score(self, histories: csr_matrix) -> Floats:
        if self.config.kind in (*ITEM_ITEM, *LINEAR):
            product = histories @ self.items  # (B, N)
            return np.asarray(product.todense() if issparse(product) else product)
        fold_in = self._fold_in_als if self.config.kind == "als" else self._fold_in_bpr
        learners: Floats = fold_in(histories) @ self.items.T  # (B, F) -> (B, N)
        return learners

    def _fold_in_als(self, histories: csr_matrix) -> Floats:
        """Fit each learner by least squares with the videos' factors fixed, (B, F)."""
        config = self.config
        model = AlternatingLeastSquares(
            config.factors, config.regularization, config.alpha, num_threads=1, use_gpu=False
        )
        model.item_factors = self.items
        rows = np.arange(histories.shape[0])
        factors: Floats = model.recalculate_user(rows, csr_matrix(histories, dtype=np.float32))
        return factors

    def _fold_in_bpr(self, histories: csr_matrix) -> Floats:
        """Fit each learner by BPR's gradient ascent (`bpr_learners`), since implicit has no fold-in, (B, F + 1)."""
        rows, counts = (np.split(part, histories.indptr[1:-1]) for part in (histories.indices, histories.data))
        parts = [(watched, count.astype(np.float64)) for watched, count in zip(rows, counts, strict=True)]
        learners = bpr_learners(self.items, self.popularity, parts, asdict(self.config), ITERATIONS["bpr"])
        return np.pad(learners, ((0, 0), (0, 1)), constant_values=1.0)

    def state(self) -> dict[str, torch.Tensor]:
        """Return what `load` needs, as tensors."""
        state = {"popularity": torch.from_numpy(self.popularity)}
        if issparse(self.items):
            arrays = {"data": self.items.data, "indices": self.items.indices, "indptr": self.items.indptr}
            return state | {name: torch.from_numpy(np.asarray(array)) for name, array in arrays.items()}
        return state if self.items is None else state | {"items": torch.from_numpy(np.asarray(self.items))}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what `state` returned."""
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        self.popularity = arrays["popularity"]
        self.items = arrays.get("items")
        if "data" in arrays:
            n = len(self.popularity)
            self.items = csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(n, n))
