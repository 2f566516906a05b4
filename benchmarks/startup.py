"""How long do `--help` and the first training step take?

    python benchmarks/startup.py [--repeats 5] [--wandb-alone]

Fresh processes, turn by turn: `python -m dcdt.run --help` against `--help` of an empty Hydra program, and `python -m
dcdt.run logger=csv` up to its first training step against a script that imports torch and lightning and takes a step
of a linear layer with `Trainer`. Also with Weights & Biases, which is the default logger, and what its own import and
offline start take, after torch and lightning and ahead of them; `--wandb-alone` measures these two anew and leaves the
other rows.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from measured import RESULTS, Row, interleaved, median, ratio, row, write

from dcdt.utils.files import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent
STOP = "import os, time; print('STEP', time.time(), flush=True); os._exit(0)"
HYDRA = """
import hydra
@hydra.main(version_base="1.3", config_path=None)
def job(config): pass
job()
"""
RUN = f"""
import sys
import dcdt.run as command
from dcdt.training import experiment
plain = experiment.run
def run(*given, **named):
    from dcdt.models.pairs import PairRecommender  # which a run of dcdt imports anyway
    def step(self, batch, batch_index): {STOP}
    PairRecommender.training_step = step
    return plain(*given, **named)
experiment.run = run
command.main()
"""
RAW = f"""
import torch, lightning as L
class Linear(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 1)
    def configure_optimizers(self): return torch.optim.AdamW(self.parameters())
    def training_step(self, batch, batch_index): {STOP}
data = torch.utils.data.DataLoader(torch.randn(32, 8), batch_size=16)
L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
          enable_model_summary=False, max_epochs=1).fit(Linear(), data)
"""

TORCH, AHEAD = "import torch, lightning", "import wandb.sdk.launch"  # the latter is what wandb.init imports
WANDB = """
import os, sys, time
{first}
began = time.perf_counter()
{then}
imported = time.perf_counter()
{last}
starting = time.perf_counter()
import wandb
wandb.init(mode="offline", dir=sys.argv[1], settings=wandb.Settings(silent=True))
print("WANDB", imported - began + time.perf_counter() - starting, flush=True)
os._exit(0)
"""


def first_step(code: str, *arguments: str) -> float:
    """Seconds from the start of a process to its first training step."""
    started = time.time()
    told = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    stamps = [line.split()[1] for line in told.stdout.splitlines() if line.startswith("STEP")]
    assert stamps, told.stderr[-2000:]
    return float(stamps[0]) - started


def answer(command: list[str]) -> None:
    """Run a process to its end."""
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def wandb_seconds(first: str, then: str, last: str) -> float:
    """Seconds of importing wandb and starting an offline run in a fresh process, without those of torch."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", WANDB.format(first=first, then=then, last=last), folder]
        told = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
    return float(told.split("WANDB")[1])


def wandb_rows(repeats: int) -> list[Row]:
    """Measure wandb after the import of torch, and before it, as in `dcdt.run`."""
    seconds = interleaved(
        {
            "after": lambda: wandb_seconds(TORCH, "import wandb", "pass"),
            "ahead": lambda: wandb_seconds("pass", AHEAD, TORCH),
        },
        repeats,
    )
    after, ahead = median(seconds["after"]), median(seconds["ahead"])
    whole = "import wandb and wandb.init(mode='offline')"
    return [
        row(f"{whole} after torch and lightning", after, "s", "a fresh process each"),
        row(
            f"{whole}, the imports ahead of torch",
            ahead,
            "s",
            f"after it, {after:.2f} s",
            ratio(seconds, "ahead", "after"),
        ),
    ]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(RESULTS / "startup.json"))
    parser.add_argument("--wandb-alone", action="store_true", help="renew the rows of wandb itself in the results")
    given = parser.parse_args()
    if given.wandb_alone:
        known, today = read_json(Path(given.out)), {"date": date.today().isoformat()}
        rows = [made | today for made in wandb_rows(given.repeats)]
        names = {made["question"] for made in rows}
        kept = [old for old in known["rows"] if old["question"] not in names]
        write_json(Path(given.out), {**known, "rows": kept + rows})
        return
    with tempfile.TemporaryDirectory() as outputs:
        quiet = [f"outputs={outputs}", "callbacks.progress=false", "trainer=cpu"]
        program = Path(outputs) / "empty.py"
        program.write_text(HYDRA)
        seconds = interleaved(
            {
                "hydra": lambda: answer([str(program), "--help"]),
                "help": lambda: answer(["-m", "dcdt.run", "--help"]),
                "raw": lambda: first_step(RAW),
                "csv": lambda: first_step(RUN, "logger=csv", *quiet),
                "wandb": lambda: first_step(RUN, "logger=wandb", "logger.mode=offline", *quiet),
            },
            given.repeats,
        )
    shown, limit = median(seconds["help"]), 1.2
    empty = f"--help of an empty Hydra program, {median(seconds['hydra']):.2f} s"
    rows: list[Row] = [
        row(
            "python -m dcdt.run --help",
            shown,
            "s",
            empty,
            shown / median(seconds["hydra"]),
            f"about 1 s (<= {limit})",
            shown <= limit,
        )
    ]
    against = f"a script with torch and lightning, {median(seconds['raw']):.2f} s"
    target = 1.5
    for name in ("csv", "wandb"):
        added = median([one - other for one, other in zip(seconds[name], seconds["raw"], strict=True)])
        what, share = (
            f"first training step, logger={name}: seconds beyond",
            median(seconds[name]) / median(seconds["raw"]),
        )
        rows.append(row(what, added, "s", against, share, f"<= {target}", added <= target))
    rows += wandb_rows(given.repeats)
    write(given.out, rows, 46)


if __name__ == "__main__":
    main()
