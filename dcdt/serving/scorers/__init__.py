"""Scorers of served models, one kind per file; a new kind is a subclass of `Scorer`, and a line here.

What combines scorers is no kind of its own: `hybrid.py` fuses the scores of two, `two_stage.py` ranks the best anew.
"""

from dcdt.serving.scorers.base import Scorer
from dcdt.serving.scorers.bm25 import BM25Scorer
from dcdt.serving.scorers.collaborative import CollaborativeScorer
from dcdt.serving.scorers.history import HistoryScorer
from dcdt.serving.scorers.images import ImagesScorer
from dcdt.serving.scorers.passages import PassagesScorer
from dcdt.serving.scorers.single_tower import SingleTowerScorer
from dcdt.serving.scorers.towers import TowersScorer

_ALL = (TowersScorer, PassagesScorer, ImagesScorer, HistoryScorer, SingleTowerScorer, BM25Scorer, CollaborativeScorer)
SCORERS: dict[str, type[Scorer]] = {scorer.kind: scorer for scorer in _ALL}
