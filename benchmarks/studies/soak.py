"""A server under searches, adds and deletes for some minutes: what is lost, what fails, how its memory grows.

    python benchmarks/studies/soak.py RUN [--minutes 10]

A copy of RUN is served by a process of its own. Two clients search; this process adds two videos, edits one and deletes
two older ones, over and over, so that the catalogue does not grow, and checks by search that the last change can be
found. At the end the catalogue must hold exactly what was left. The results go to benchmarks/results/soak.json.
"""

import argparse
import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the modules that benchmarks share
from measured import RESULTS
from serving import questions_of, start_server

from dcdt.data.types import Documents
from dcdt.serving.load import load
from dcdt.serving.recommender import ServedRecommender
from dcdt.utils.files import write_json

OUT = RESULTS / "soak.json"


def memory(process: int) -> float:
    """Resident memory of a process in MB."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def ask(port: int, text: str, filters: str = "") -> dict:
    """One search over HTTP."""
    address = f"http://127.0.0.1:{port}/search?k=10&q={quote(text)}&filter={quote(filters)}"
    with urllib.request.urlopen(address, timeout=60) as response:
        return json.loads(response.read())


class Client(threading.Thread):
    """Searches until it is told to stop."""

    def __init__(self, port: int, texts: list[str], start: int) -> None:
        super().__init__(daemon=True)
        self.port, self.texts, self.at = port, texts, start
        self.done, self.failed, self.over = 0, [], False

    def run(self) -> None:
        """Ask one question after the other."""
        while not self.over:
            self.at += 2
            try:
                found = ask(self.port, self.texts[self.at % len(self.texts)])
                assert len(found["videos"]) == 10
                self.done += 1
            except Exception as error:  # every kind is counted
                self.failed.append(repr(error)[:200])


def change(writer: ServedRecommender, step: int, wanted: set[str]) -> str:
    """Add two videos, edit one of them, and delete two older ones; the id of the edited one."""
    ids = [f"soak{step}-{at}" for at in (0, 1)]
    writer.add(Documents(ids, ["added"] * 2, ["a video of the soak test"] * 2, [{}] * 2))
    writer.update(Documents([ids[0]], ["edited"], ["a video that was edited"], [{}]))
    wanted |= set(ids)
    old = {f"soak{step - 5}-{at}" for at in (0, 1)}
    if old <= wanted:
        writer.delete(sorted(old))
        wanted -= old
    return ids[0]


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    load(given.run)
    folder = Path(shutil.copytree(given.run, Path(tempfile.mkdtemp()) / "run"))
    writer = ServedRecommender(folder, threads=1)
    wanted = set(writer.catalogue.snapshot.table["id"].to_pylist())
    texts = next(iter(questions_of(writer).values()))
    process, port = start_server(folder, log=folder.parent / "server.log")
    clients = [Client(port, texts, at) for at in (0, 1)]
    missed, waits, megabytes, step = [], [], [], 0
    until = time.monotonic() + 60 * given.minutes
    for client in clients:
        client.start()
    while time.monotonic() < until:
        name = change(writer, step, wanted)
        started = time.monotonic()
        while not any(video["title"] == "edited" for video in ask(port, "edited", f"id={name}")["videos"]):
            if time.monotonic() - started > 30:
                missed.append(name)
                break
        waits.append(time.monotonic() - started)
        megabytes.append(memory(process.pid))
        step += 1
    for client in clients:
        client.over = True
    for client in clients:
        client.join(90)
    process.terminate()
    code = process.wait(60)
    view = ServedRecommender(folder).catalogue.snapshot
    held = {name for name, here in zip(view.table["id"].to_pylist(), view.present, strict=True) if here}
    half = megabytes[len(megabytes) // 2 :]
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "minutes": given.minutes,
        "searches": sum(client.done for client in clients) + step,
        "failed_searches": [error for client in clients for error in client.failed],
        "changes": 2 * step + max(0, step - 5),
        "videos_lost": sorted(wanted - held),
        "videos_too_many": sorted(held - wanted),
        "changes_not_found_in_30_s": missed,
        "seconds_until_found": {"p50": float(np.median(waits)), "worst": float(max(waits))},
        "server_mb": {"first": megabytes[0], "half": half[0], "last": half[-1], "most": max(megabytes)},
        "server_mb_per_minute_second_half": 2 * (half[-1] - half[0]) / given.minutes,
        "exit_code": code,
    }
    shutil.rmtree(folder.parent)
    write_json(OUT, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
