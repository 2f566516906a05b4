"""Fill the embedding cache of a collection: `python -m dcdt.embed [data=...] [embedder=...]`."""

import sys

import hydra
from omegaconf import DictConfig

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.errors import UserError


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="embed")
def job(config: DictConfig) -> None:
    """Embed every query and every field of every video that the cache lacks."""
    from dcdt.data.collection import load_collection
    from dcdt.data.embeddings import VectorCache
    from dcdt.embedders import space_of
    from dcdt.embedders.filling import fill

    try:
        settings = parse(config)
        collection = load_collection(settings.data.path)
        fields = [collection.field_texts(name) for name in settings.fields]
        asked = collection.queries.texts if collection.asked else []
        texts = list(dict.fromkeys([*asked, *(text for part in fields for text in part)]))
        cache = VectorCache(settings.data.cache, space_of(settings.embedder))
        cached = len(texts) - len(cache.missing(texts))
        print(f"{len(texts)} distinct texts of {collection.name}: {cached} cached, {len(texts) - cached} to embed")  # noqa: T201
        fill(cache, texts, settings.embedder)
        print(f"{cache.folder}: {len(cache)} vectors of {cache.space.dimensions} numbers")  # noqa: T201
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


def main() -> None:
    """The command."""
    register_resolvers()
    job()


if __name__ == "__main__":
    main()
