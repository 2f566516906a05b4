"""Index batches of a split: row numbers only, vectors are gathered on the training device.

The frozen vectors and the training batches are on the training device; the sides with their judgments, and the
positions of an evaluation, are on the CPU, where texts and learners are looked up by them. What is combined with scores
is moved to the device of the scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import lightning as L
import torch
from torch import Tensor

from dcdt.data.pairs import Pairs
from dcdt.data.splits import Side, Split
from dcdt.data.tables import pad_lists
from dcdt.data.types import Collection, Judgments
from dcdt.data.units import query_units
from dcdt.evaluation.ranking import tie_order
from dcdt.utils.errors import UserError

MAX_CHUNK_SCORES = 2**24  # scores at a time in evaluation: 64 MB of fp32


class Sampler(Protocol):
    """The interface of a sampler that training uses (`dcdt.samplers.base`)."""

    @property
    def pairs(self) -> Tensor:
        """Query and video rows of an epoch, (R, 2)."""
        ...

    def draw(self, generator: torch.Generator) -> Tensor:
        """Draw the video rows of the negatives of every pair, (R, K)."""
        ...

    def batch(self, rows: Tensor, global_rows: Tensor | None, device: torch.device) -> dict[str, Any]:
        """Make a training batch of rows (B, 2 + K) on a device; `global_rows`: those of all processes together."""
        ...

    def should_refresh(self, epoch: int) -> bool:
        """Return whether `refresh` must be called before this epoch."""
        ...

    def refresh(self, score: Callable[[Tensor], Tensor]) -> None:
        """Mine anew with the current scores: a function from query rows (B,) to (B, N)."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs."""
        ...

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        ...

    def statistics(self) -> dict[str, float]:
        """Return figures about the negatives."""
        ...


class DeviceCopies:
    """A tensor of the CPU and its copies on other devices, each made at first use."""

    def __init__(self, tensor: Tensor) -> None:
        self._by_device = {tensor.device: tensor}
        self._tensor = tensor

    def on(self, device: torch.device) -> Tensor:
        """Return the tensor on a device."""
        if device not in self._by_device:
            self._by_device[device] = self._tensor.to(device)
        return self._by_device[device]


@dataclass(frozen=True)
class SideTensors:
    """One side as tensors on the CPU, ready for full ranking.

    Attributes:
        queries: (n,) query rows.
        judged: (n, J) video rows with a grade above 0, padded with -1.
        grades: (n, J), 0 at padding.
        candidates: (N,) bool, the videos that are ranked.
        removed: (n, X) videos excluded from this query's ranking, padded with -1: related ones outside `judged`, and
            those that the learner has watched (`Collection.excluded`).
        pairs: labelled pairs of the pair protocol, (m, 3) of position in `queries`, video row, label; or None.
    """

    name: str
    queries: Tensor
    judged: Tensor
    grades: Tensor
    candidates: Tensor
    removed: Tensor
    pairs: Tensor | None = None

    @cached_property
    def n_candidates(self) -> int:
        """Number of videos that are ranked."""
        return int(self.candidates.sum())

    @cached_property
    def pair_rows(self) -> Tensor | None:
        """The pairs by positive: rows of query, positive and its negatives, (P, 2 + K), padded with -1; or None."""
        if self.pairs is None:
            return None
        pairs, rows = self.pairs[self.pairs[:, 0].argsort(stable=True)], []
        sizes = pairs[:, 0].bincount(minlength=len(self.queries)).tolist()
        for query, own in zip(self.queries.tolist(), torch.split(pairs, sizes), strict=True):
            positives, negatives = (own[own[:, 2] == label, 1] for label in (1, 0))
            groups = negatives.tensor_split(max(1, len(positives)))  # they are stored next to their positive
            rows += [[query, int(video), *group.tolist()] for video, group in zip(positives, groups, strict=False)]
        return pad_lists(rows, -1)

    @cached_property
    def _mask(self) -> DeviceCopies:
        return DeviceCopies(self.candidates)

    @cached_property
    def _rows(self) -> DeviceCopies:
        return DeviceCopies(self.candidates.nonzero().flatten())

    def candidate_mask(self, device: torch.device) -> Tensor | None:
        """Return the candidates (N,) bool on a device; None if they are all videos."""
        return self._mask.on(device) if self.n_candidates < len(self.candidates) else None

    def candidate_rows(self, device: torch.device) -> Tensor | None:
        """Return the rows of the candidates (C,), ascending, on a device; None if they are all videos."""
        return self._rows.on(device) if self.n_candidates < len(self.candidates) else None


class IndexBatches:
    """Batches of row numbers, shuffled and with fresh negatives each epoch; the sampler makes the batches.

    An epoch depends on the seed, its number and the sampler's state alone, so a resumed run sees the same batches.
    Several processes share each batch without overlap, so the batch size is that of all of them together and training
    does not depend on their number: each takes every n-th row, and `share` is the weight of its mean in the mean over
    the processes, 0 if it had to borrow a row. A batch is on the device except `query_rows` (B,), which are on the CPU:
    a model that looks something up by them need not wait for the device.
    """

    def __init__(
        self,
        pairs: Tensor,
        sampler: Sampler,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        device: torch.device,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.pairs = pairs
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = epoch
        self.device = device
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return -(-len(self.pairs) // self.batch_size)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        rows = torch.cat([self.pairs, self.sampler.draw(generator)], dim=1)  # (P, 2 + K)
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            if self.world == 1:
                yield {**self.sampler.batch(batch, None, self.device), "query_rows": batch[:, 0]}
                continue
            own_rows = batch[self.rank :: self.world]
            share = len(own_rows) * self.world / len(batch)
            own_rows = own_rows if len(own_rows) else batch[:1]
            yield {**self.sampler.batch(own_rows, batch, self.device), "query_rows": own_rows[:, 0], "share": share}


class RankingDataModule(L.LightningDataModule):
    """Training batches and the sides to rank, for every model alike.

    Args:
        collection: texts and judgments.
        split: the division.
        pairs: the pair protocol of the val and test sides.
        sampler: negatives of training, or None for models that are not trained.
        batch_size: training pairs a batch.
        seed: of shuffling and sampling.
        ks: cut-offs of the ranking metrics.

    Raises:
        UserError: a cut-off is larger than the number of candidates.
    """

    def __init__(
        self,
        collection: Collection,
        split: Split,
        pairs: dict[str, Pairs],
        sampler: Sampler | None,
        batch_size: int,
        seed: int,
        ks: Sequence[int] = (1, 5, 10),
    ) -> None:
        super().__init__()
        self.collection = collection
        self.split = split
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.ks = tuple(ks)
        check_cutoffs(split, ks)
        self.sides = {name: side_tensors(name, side, collection, pairs.get(name)) for name, side in split.sides.items()}

    def train_dataloader(self) -> IndexBatches:
        """Return index batches; the epoch number comes from the trainer."""
        assert self.trainer is not None and self.sampler is not None
        trainer = self.trainer
        return IndexBatches(
            self.sampler.pairs,
            self.sampler,
            self.batch_size,
            self.seed,
            lambda: trainer.current_epoch,
            trainer.strategy.root_device,
            trainer.global_rank,
            trainer.world_size,
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ANN401
        """Leave a batch on its device: the training device, or the CPU for positions."""
        return batch

    @cached_property
    def ties(self) -> DeviceCopies:
        """The order of equal scores, (N,) from `tie_order`, computed once for all stages and models."""
        return DeviceCopies(tie_order(self.collection.videos.ids))

    @cached_property
    def units(self) -> list[str]:
        """The unit of inference of each query row (`query_units`)."""
        return query_units(self.collection, self.ties.on(torch.device("cpu")).numpy())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state of the sampler."""
        return self.sampler.state() if self.sampler is not None else {}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Restore the state of the sampler."""
        if self.sampler is not None:
            self.sampler.restore(state_dict)

    def val_dataloader(self) -> "Positions":
        """Return chunks of positions in the validation side, divided among the processes."""
        trainer = self.trainer
        return Positions(self.sides["val"], *((trainer.global_rank, trainer.world_size) if trainer else ()))

    def test_dataloader(self) -> list["Positions"]:
        """Return chunks of positions for every side, in the order of `sides`; every process ranks all of them."""
        return [Positions(side) for side in self.sides.values()]

    def predict_dataloader(self) -> "Positions":
        """Return chunks of positions in the test side."""
        return Positions(self.sides["test"])


class Positions:
    """Consecutive positions of a side in chunks that bound the size of a score matrix.

    Each of several processes takes its block of 0..n-1, or all if there are fewer positions than processes: metrics
    count a query once, however many processes ranked it.
    """

    def __init__(self, side: SideTensors, rank: int = 0, world: int = 1) -> None:
        size = max(1, min(1024, MAX_CHUNK_SCORES // len(side.candidates)))
        positions = torch.arange(len(side.queries))
        if len(positions) >= world:
            positions = torch.tensor_split(positions, world)[rank]
        self.chunks = torch.split(positions, size)

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.chunks)


def check_cutoffs(split: Split, ks: Sequence[int]) -> None:
    """Raise UserError where a cut-off is larger than the number of candidates of a side."""
    for name, side in split.sides.items():
        if max(ks) > side.candidates.sum():
            raise UserError(
                f"ks holds {max(ks)}, but side '{name}' ranks {side.candidates.sum()} videos only; give smaller ks."
            )


def side_tensors(name: str, side: Side, collection: Collection, pairs: Pairs | None = None) -> SideTensors:
    """Convert one side of a split to tensors."""
    position = {row: i for i, row in enumerate(side.queries.tolist())}
    judged: list[list[int]] = [[] for _ in position]
    grades: list[list[float]] = [[] for _ in position]
    removed: list[list[int]] = [[] for _ in position]
    for query, video, grade in _triples(side.judgments):
        judged[position[query]].append(video)
        grades[position[query]].append(grade)
    for query, video, _ in _triples(collection.related):
        if query in position and side.candidates[video] and video not in judged[position[query]]:
            removed[position[query]].append(video)
    for query, video, _ in _triples(collection.excluded) if collection.excluded else ():
        if query in position:
            removed[position[query]].append(video)
    labelled = None
    if pairs is not None:
        rows = [[position[query] for query in pairs.query.tolist()], pairs.video.tolist(), pairs.label.tolist()]
        labelled = torch.tensor(rows, dtype=torch.int64).T.contiguous()  # (m, 3)
    return SideTensors(
        name,
        torch.from_numpy(side.queries),
        pad_lists(judged, -1),
        pad_lists(grades, 0.0),
        torch.from_numpy(side.candidates),
        pad_lists(removed, -1),
        labelled,
    )


def _triples(judgments: Judgments) -> Iterator[tuple[int, int, float]]:
    return zip(judgments.query.tolist(), judgments.video.tolist(), judgments.grade.tolist(), strict=True)
