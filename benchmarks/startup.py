"""How long until `--help` answers and until the first training step?

    python benchmarks/startup.py [--repeats 5]

Fresh processes, turn by turn: `python -m dcdt.run --help` against `--help` of an empty Hydra program, and `python -m
dcdt.run logger=csv` up to its first training step against a script that imports torch and lightning and takes a step
of a linear layer with `Trainer`. Also what Weights & Biases adds, which is the default logger.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import RESULTS, Row, interleaved, median, row, write

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
plain = command.run
def run(*given, **named):
    from dcdt.models.pairs import PairRecommender  # which a run of dcdt imports anyway
    def step(self, batch, batch_index): {STOP}
    PairRecommender.training_step = step
    return plain(*given, **named)
command.run = run
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


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default=str(RESULTS / "startup.json"))
    given = parser.parse_args()
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
    for name, target in (("csv", 1.5), ("wandb", None)):
        added = median([one - other for one, other in zip(seconds[name], seconds["raw"], strict=True)])
        what = f"first training step, logger={name}: seconds beyond"
        goal = (f"<= {target}", added <= target) if target else ("report", None)
        rows.append(row(what, added, "s", against, median(seconds[name]) / median(seconds["raw"]), *goal))
    write(given.out, rows, 46)


if __name__ == "__main__":
    main()
