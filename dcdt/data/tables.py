"""The frozen embedding tables of a collection, as tensors that follow their model to its device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dcdt.config import EmbedderConfig
from dcdt.data.collection import Collection
from dcdt.data.embeddings import VectorCache
from dcdt.embedders import space_of
from dcdt.embedders.filling import fill

FROZEN_FIELDS = ("title", "text")


class Tables(nn.Module):
    """Frozen vectors; buffers that no checkpoint carries.

    Attributes:
        queries: (Q, D) one row a query of the collection; zeros where nobody asks.
        videos: (F, N, D) one layer a field, one row a video.
        frozen: (N, D) title and text vectors summed and normalised, whatever the fields: what zero-shot ranks by, and
            what hard negatives and the pair file are drawn with, so that these do not change with the model.
    """

    queries: Tensor
    videos: Tensor
    frozen: Tensor

    def __init__(self, queries: Tensor, videos: Tensor, frozen: Tensor, fields: Sequence[str]) -> None:
        super().__init__()
        self.register_buffer("queries", queries, persistent=False)
        self.register_buffer("videos", videos, persistent=False)
        self.register_buffer("frozen", nn.functional.normalize(frozen, dim=-1), persistent=False)
        self.fields = list(fields)

    def of(self, fields: Sequence[str]) -> "Tables":
        """The same vectors with these of the fields, in this order."""
        if list(fields) == self.fields:
            return self
        at = [self.fields.index(name) for name in fields]
        return Tables(self.queries, self.videos[at], self.frozen, fields)

    @property
    def width(self) -> int:
        """D, the input width of every model."""
        return self.queries.shape[-1]


def load_tables(
    collection: Collection, fields: Sequence[str], embedder: EmbedderConfig, cache_folder: str, progress: bool = True
) -> Tables:
    """Vectors of all queries and of every field of all videos; what the cache lacks is embedded first.

    Raises:
        UserError: the cache is corrupt or of another model, or what is missing cannot be embedded here.
    """
    frozen = [name for name in FROZEN_FIELDS if name in collection.fields]  # a collection may have no text at all
    field_texts = {name: collection.field_texts(name) for name in dict.fromkeys([*fields, *frozen])}
    asked = collection.queries.texts if collection.asked else []
    texts = [*asked, *(text for part in field_texts.values() for text in part)]
    remedy = f"python -m dcdt.embed data=files data.path={collection.path} data.cache={cache_folder}"
    cache = VectorCache(cache_folder, space_of(embedder), remedy)
    fill(cache, texts, embedder, progress)
    videos = torch.empty(len(fields), len(collection.videos), cache.space.dimensions)  # (F, N, D)
    total = torch.zeros(videos.shape[1:])  # (N, D); one field at a time, since a large catalogue is gigabytes
    for name, part in field_texts.items():
        vectors = torch.from_numpy(cache.vectors(part))  # (N, D)
        for at in [at for at, field in enumerate(fields) if field == name]:
            videos[at] = vectors
        if name in frozen:
            total += vectors
    nothing = torch.zeros(1, cache.space.dimensions).expand(len(collection.queries), -1)  # (Q, D)
    return Tables(torch.from_numpy(cache.vectors(asked)) if asked else nothing, videos, total, fields)


def padded(lists: Sequence[Sequence[float]], fill: float) -> Tensor:
    """Lists of different lengths as one (n, longest) tensor, filled up with `fill`, of the type of `fill`."""
    width = max((len(part) for part in lists), default=0)
    rows = [[*part, *[fill] * (width - len(part))] for part in lists]
    return torch.tensor(rows, dtype=torch.int64 if isinstance(fill, int) else torch.float32).reshape(len(lists), width)
