"""What an export holds of one part of a model."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor, nn

from dcdt.models.recommender import Recommender
from dcdt.serving.towers import QUERY_MAP, unit
from dcdt.utils.errors import UserError

Graph = tuple[nn.Module, Tensor, str, list[str]]  # module, example inputs, names of the inputs and of the outputs
TOLERANCE = 1e-5  # between torch and what answers without it
PARITY = 5  # videos and queries on which an exported graph is compared


@dataclass
class PartExport:
    """One part of a model: what is written of it.

    Attributes:
        spec: as model.json holds it.
        columns: what it adds to the table of videos.
        graphs: ONNX graphs by name.
        learned: arrays that scoring reads beside the table.
        probes: (P, W) query vectors on which the recall of an approximate index is measured.
    """

    spec: dict[str, Any]
    columns: dict[str, pa.Array] = field(default_factory=dict)
    graphs: dict[str, Graph] = field(default_factory=dict)
    learned: dict[str, np.ndarray] = field(default_factory=dict)
    probes: np.ndarray | None = None


def linear_query(model: Recommender) -> tuple[bool, dict[str, np.ndarray]]:
    """Whether the query tower of a model is one product with a matrix, and that matrix as an array of its part.

    Raises:
        UserError: the product differs from the tower.
    """
    matrix = model.linear_query()
    if matrix is None:
        return False, {}
    asked, found = model.tables.queries[:PARITY], np.ascontiguousarray(matrix.numpy())
    worst = float(np.abs(unit(asked.numpy() @ found) - model.encode_queries(asked).numpy()).max())
    if not worst <= TOLERANCE:
        raise UserError(f"the query map is {worst:.2g} off torch (limit {TOLERANCE:g}); report this as a bug.")
    return True, {QUERY_MAP: found}
