"""How far off is the estimate of tokens from OpenAI's own count?

    pip install tiktoken; TIKTOKEN_CACHE_DIR=FOLDER python benchmarks/studies/tokens.py FOLDER [FOLDER ...]

Counts the texts of collections by tiktoken's cl100k_base, the vocabulary of the text-embedding-3 models, which tiktoken
downloads unless it lies in $TIKTOKEN_CACHE_DIR. One row a collection and language.
"""

import json
import sys
from pathlib import Path

import numpy as np

from dcdt.embeddings.providers.token_estimates import estimate_tokens


def records(path: Path) -> list[dict]:
    """Lines of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Print one table."""
    import tiktoken

    encoding = tiktoken.get_encoding("cl100k_base")
    print("| texts | counted | estimated | ratio | texts estimated too low |\n|---|---|---|---|---|")
    for folder in map(Path, sys.argv[1:]):
        queries = records(folder / "queries.jsonl")
        videos = [text for video in records(folder / "corpus.jsonl") for text in (video.get("title"), video["text"])]
        chinese = [query["text"] for query in queries if (query.get("metadata") or {}).get("lang") == "zh"]
        others = [text for text in (*videos, *(query["text"] for query in queries)) if text and text not in chinese]
        for name, texts in ((folder.name, others), (f"{folder.name}, Chinese", chinese)):
            if texts:
                counted = np.array([len(encoding.encode(text)) for text in texts])
                guessed = np.array([estimate_tokens(text) for text in texts])
                low = f"{100 * (guessed < counted).mean():.0f} %"
                ratio = guessed.sum() / counted.sum()
                print(f"| {name} ({len(texts):,}) | {counted.sum():,} | {guessed.sum():,} | {ratio:.2f} | {low} |")


if __name__ == "__main__":
    main()
