"""One of the processes of tests/test_distributed.py: gradients of an epoch's steps, and what validation says.

python tests/distributed_worker.py FOLDER OUT SAMPLER GATHER
"""

import json
import os
import sys
from pathlib import Path

import lightning as L
import torch
from support import prepare, quiet_trainer

from dcdt.data.config import SplitConfig
from dcdt.data.datamodule import RankingDataModule
from dcdt.losses.config import ContrastiveConfig, InfoNCEConfig
from dcdt.losses.contrastive import ContrastiveLoss
from dcdt.losses.infonce import InfoNCELoss
from dcdt.models.config import DCDTConfig, OptimizerConfig
from dcdt.models.dual_tower import DualTower
from dcdt.samplers.config import HardSamplerConfig, InBatchSamplerConfig
from dcdt.samplers.hard import HardSampler
from dcdt.samplers.in_batch import InBatchSampler
from dcdt.samplers.pool import training_pool


class Gradients(L.Callback):
    """Keeps the gradient of every step, and the rows that this process trained on."""

    def __init__(self):
        self.steps, self.rows = [], []

    def on_train_batch_start(self, trainer, module, batch, index):
        self.rows.append(batch["query"].tolist() if batch.get("share", 1) else [])

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.steps.append(torch.cat([part.grad.flatten() for part in module.parameters() if part.grad is not None]))


def main(folder, out, sampler, gather):
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    made = prepare(Path(folder), SplitConfig("query", 0, 10, "all"))
    pool, gathers = training_pool(made.collection, made.split), gather == "true"
    if sampler == "hard":
        found = HardSampler(HardSamplerConfig("hard", 4, 0.3, 100), pool, made.tables)
        loss = ContrastiveLoss(ContrastiveConfig("contrastive", 1.0, squared=False))
    else:
        found = InBatchSampler(InBatchSamplerConfig("in_batch", sampler == "logq", gathers), pool, made.tables)
        loss = InfoNCELoss(InfoNCEConfig("infonce", "each", 0.1, learn_temperature=False))
    size = next(size for size in range(4, 60) if len(pool.pairs) % size == 1)  # one process finds the last batch empty
    data = RankingDataModule(made.collection, made.split, made.pairs, found, size, 0, (1, 5))
    torch.manual_seed(0)
    config = DCDTConfig("dcdt", ["title", "text"], 16, 0.0, "none", "concat")
    model = DualTower(config, made.tables, loss, OptimizerConfig(1e-3, 0.01, "constant"))
    seen = Gradients()
    together = {"devices": world, "strategy": "ddp"} if world > 1 else {}
    trainer = quiet_trainer(max_epochs=1, callbacks=[seen], use_distributed_sampler=False, **together)
    [before] = trainer.validate(model, datamodule=data, verbose=False)
    trainer.fit(model, datamodule=data)
    torch.save({"steps": seen.steps, "loss": trainer.callback_metrics["train/loss"]}, Path(out) / f"{world}_{rank}.pt")
    result = {"val": before, "rows": seen.rows, "size": size}
    (Path(out) / f"{world}_{rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
