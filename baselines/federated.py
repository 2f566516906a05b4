"""A model fitted as schools would that keep their queries, on one collection: what federating reaches and costs."""

from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from dcdt.config.registry import MODELS, look_up
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.tables import Tables
from dcdt.evaluation.pairs import pair_metrics
from dcdt.models.components import make_component
from dcdt.models.noise import add_noise, noise_multiplier
from dcdt.models.query_batch import QueryBatch, query_batch
from dcdt.models.recommender import Recommender
from dcdt.models.sums import Sums
from dcdt.utils.errors import NotApplicable, UserError

from .config import FederatedConfig


class Federated(Recommender):
    """A model of several schools (`split.schools`) that do not pool their queries.

    `fit=sums`: from the schools' sums, as `dcdt.federate` merges them; with `epsilon` each school adds noise to its
    own. `fit=local`: each school fits a model alone, which ranks its own queries. `fit=fedavg` and `fit=fedadam`
    average weights by Flower, which needs an environment of its own.
    """

    trained_by_epochs: ClassVar[bool] = False
    decoupled: ClassVar[bool] = False

    def __init__(self, config: FederatedConfig, tables: Tables) -> None:
        super().__init__(tables)
        self.config = config
        self.merged = self._make()
        self.reads_validation = self.merged.reads_validation
        self.needs_question = self.merged.needs_question
        self._local: dict[str, Recommender] = {}
        self._schools = np.zeros(0)  # (Q,) the school of each query row
        self.figures: dict[str, float] = {}

    def _make(self) -> Recommender:
        """Make a model that is not fitted; one that is trained has no loss here, since Flower's clients train it."""
        cls, config = look_up(MODELS, self.config.model.name), self.config.model
        if cls.trained_by_epochs:
            return cls(config, self.tables, nn.Identity(), None)  # type: ignore[no-any-return]
        return make_component(config, self.tables, "model=federated").to(self.tables.device)

    def on_prepare(self, data: RankingDataModule) -> None:
        """Fit the model of each school, or that of the sums of all."""
        if not data.split.schools:
            raise UserError("model=federated needs schools: split.schools=5, or a field of the queries' metadata.")
        if self.config.fit not in ("sums", "local"):
            raise NotApplicable(f"fit={self.config.fit} is by Flower in an environment of its own (docs/federation.md)")
        self._schools, schools = np.array(data.split.schools), dict[str, RankingDataModule]()
        for name in sorted(set(data.split.schools)):
            split = data.split.where(self._schools == name)
            if len(split.train.queries):
                schools[name] = RankingDataModule(data.collection, split, {}, None, 1, data.seed, data.ks)
        self.figures = {"federated/schools": len(schools)}
        if self.config.fit == "sums":
            self._fit_sums(data, list(schools.values()))
            return
        self._local = {name: self._make() for name in schools}
        for name, school in schools.items():
            self._local[name].prepare(school)

    def _fit_sums(self, data: RankingDataModule, schools: list[RankingDataModule]) -> None:
        """Exchange sums, and losses where the model chooses anything, then fit."""
        model, config = self.merged, self.config
        model.check_fits_from_sums(config.model.name)
        n_messages, sigma, clip = 1 + bool(model.loss_shapes()), 0.0, None
        if config.epsilon is not None:
            try:
                sigma, clip = noise_multiplier(config.epsilon, config.delta, n_messages), config.clip
            except UserError as error:  # without opacus
                raise NotApplicable(str(error)) from error

        def exchange(sums: list[Sums]) -> dict[str, Tensor]:
            messages.append([add_noise(part, sigma) if sigma else part.tensors for part in sums])
            return {name: torch.stack([one[name] for one in messages[-1]]).sum(0) for name in messages[-1][0]}

        messages: list[list[dict[str, Tensor]]] = []
        total = exchange([model.fitted_part.sum_training(school, clip) for school in schools])
        losses = exchange([model.sum_losses(school, total, clip) for school in schools]) if n_messages == 2 else {}
        model.fit_sums(data, total, losses, included=not sigma)
        n_bytes = sum(len(save(part[0])) for part in messages)
        self.figures |= {"federated/rounds": n_messages, "federated/bytes": n_bytes}
        if "gram" in total:
            by_message, by_model = infer_membership(model, schools, messages[0])
            self.figures |= {"federated/auc_message": by_message, "federated/auc_model": by_model}

    def statistics(self) -> dict[str, float]:
        """Return schools, rounds, bytes of a school's messages, AUCs of membership inference, and the model's own."""
        return self.figures if self.config.fit == "local" else self.figures | self.merged.statistics()

    def score(self, queries: QueryBatch) -> Tensor:
        """Score B queries by the merged model, or each by the model of its own school: (B, N)."""
        return self._score(queries, lambda model: model.score(queries))

    def score_left_out(self, queries: QueryBatch, rows: Tensor) -> Tensor:
        """Score fitted queries as if each had been left out: (B, N)."""
        return self._score(queries, lambda model: model.score_left_out(queries, rows))

    def _score(self, queries: QueryBatch, score: Callable[[Recommender], Tensor]) -> Tensor:
        if self.config.fit != "local":
            return score(self.merged)
        if queries.rows is None or not self._local:
            raise UserError("model.fit=local is there to compare: it holds no model for questions from elsewhere.")
        own = self._schools[queries.rows.numpy()].tolist()
        if missing := sorted({*own} - {*self._local}):
            raise NotApplicable(f"the school '{missing[0]}' has no training query to fit a model on")
        scores = {name: score(self._local[name]) for name in {*own}}
        return torch.stack([scores[name][row] for row, name in enumerate(own)])


def infer_membership(
    model: Recommender, schools: list[RankingDataModule], statistics: list[dict[str, Tensor]]
) -> tuple[float, float]:
    """Tell fitted from test queries of each school by its message and by the merged model: two AUROCs.

    By a message, the better of the leverage `x' G^-1 x` and `x' G x`, G being the sum of `x x'`; by the model, its best
    score.
    """
    whitening: Tensor = model.fitted_part.whitening  # type: ignore[assignment]
    tests: list[list[float]] = [[], [], []]
    is_member: list[bool] = []
    for school, message in zip(schools, statistics, strict=True):
        gram = message["gram"]
        shift = 0.1 - torch.linalg.eigvalsh(gram)[0].clamp(max=0)  # noise makes eigenvalues negative
        inverse = torch.linalg.inv(gram + shift * torch.eye(len(gram), dtype=gram.dtype))
        for side in ("train", "val", "test"):
            rows = torch.from_numpy(getattr(school.split, side).queries)
            x = nn.functional.normalize(model.tables.queries[rows] @ whitening, dim=-1).cpu().double()  # (n, D)
            tests[0] += (-(x @ inverse * x).sum(1)).tolist()
            tests[1] += (x @ gram * x).sum(1).tolist()
            tests[2] += model.score(query_batch(school.collection, model.tables, rows)).amax(1).tolist()
            is_member += [side != "test"] * len(rows)
    by_message, by_trace, by_model = (pair_metrics(test, is_member, 0.0)["auroc"] for test in tests)
    return max(by_message, by_trace), by_model
