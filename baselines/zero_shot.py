"""The untrained baseline: cosine of the frozen embeddings."""

from typing import ClassVar

from torch import Tensor, nn

from dcdt.config import OptimizerConfig, ZeroShotConfig
from dcdt.data.tables import Tables
from dcdt.models.recommender import Recommender


class ZeroShot(Recommender):
    """Cosine of the frozen query vector and the sum of a video's frozen field vectors.

    It costs nothing and is what a trained model must beat, so it stands in every table.
    """

    fittable: ClassVar[bool] = False

    def __init__(
        self,
        config: ZeroShotConfig,
        tables: Tables,
        loss: nn.Module | None = None,
        optimizer: OptimizerConfig | None = None,
    ) -> None:
        super().__init__(tables)

    def encode_queries(self, vectors: Tensor) -> Tensor:
        """The frozen vectors (B, D), normalised."""
        return nn.functional.normalize(vectors, dim=-1)

    def encode_videos(self, fields: Tensor) -> Tensor:
        """The sum over the fields of frozen vectors (F, ..., D), normalised: (..., D)."""
        return nn.functional.normalize(fields.sum(0), dim=-1)
