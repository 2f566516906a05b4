"""A run's model on the questions of its validation, as it was judged on them; test queries are not read."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dcdt.config.registry import LOSSES, MODELS, look_up
from dcdt.data.datamodule import RankingDataModule, SideTensors
from dcdt.data.splits import make_split
from dcdt.models.recommender import Recommender, query_batch
from dcdt.training.restore import Restored


@dataclass(frozen=True)
class Validation:
    """The validation questions of a restored run."""

    restored: Restored

    @cached_property
    def data(self) -> RankingDataModule:
        """The collection, divided as it was for the run."""
        collection = self.restored.collection
        return RankingDataModule(collection, make_split(collection, self.restored.settings.split), {}, None, 1, 0, (1,))

    @property
    def side(self) -> SideTensors:
        """Queries, candidates and judgments."""
        return self.data.sides["val"]

    @property
    def texts(self) -> list[str]:
        """The n questions."""
        return [self.restored.collection.queries.texts[row] for row in self.side.queries.tolist()]

    @cached_property
    def judge(self) -> Recommender:
        """The model; where validation queries were fitted, fitted anew, which remembers how to leave each of them out.

        What epochs trained on top of that fit, as they train a joint head, is taken over.
        """
        restored = self.restored
        if not restored.model.reads_validation:
            return restored.model
        settings = restored.settings
        loss = look_up(LOSSES, settings.loss.name)(settings.loss)
        build = look_up(MODELS, settings.model.name)
        model: Recommender = build(settings.model, restored.tables, loss, settings.optimizer)
        self.data.ks = tuple(settings.ks)
        model.prepare(self.data)
        model.load_state_dict(restored.model.state_dict())
        return model.eval()

    def scores(self, vectors: Tensor | None = None) -> Iterator[Tensor]:
        """Scores (N,) of the catalogue for each question, -inf where a video is no candidate.

        Args:
            vectors: (n, D) of the questions where these are not the run's own. A model that fitted validation queries
                can leave out its own vectors alone, so that what it then scores is changed by as much as the whole
                model's scores change.
        """
        collection, tables, model, side = self.restored.collection, self.restored.tables, self.judge, self.side
        for at, row in enumerate(side.queries.tolist()):
            rows = torch.tensor([row])
            own = query_batch(collection, tables, rows, side)
            other = replace(own, vectors=vectors[at : at + 1]) if vectors is not None else own
            if not model.reads_validation:
                scores = model.score(other)
            else:
                scores = model.score_left_out(own, rows)
                if vectors is not None:
                    scores = scores + (model.score(other) - model.score(own)).nan_to_num()
            yield scores[0].float().masked_fill(~side.candidates, float("-inf"))
