"""Fuzz what strangers supply, guided by coverage: `python tests/fuzz/fuzz.py [TARGET ...] [--seconds N] [--write]`.

Each target runs in a process of its own under atheris, from real files of the collections (those that come with the
project and, where $DCDT_COLLECTIONS names them, the public ones). Defects are collected, not stopped at; each kind is
kept once, in outputs/fuzz. What goes from there to found/ must hold nothing of the public collections. `--write` puts
the counts into results.json, from which docs/reliability.md is made.
"""

import argparse
import hashlib
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent.parent)]
LONGEST = 100_000  # bytes of an input


class Tally:
    """Tries inputs on a target and counts; ends the process when the time is up."""

    def __init__(self, target, seconds, place):
        self.target, self.seconds, self.place = target, seconds, place
        self.counts = {"executions": 0, "accepted": 0, "refused": 0, "seeds": len(target.seeds)}
        self.defects, self.began, self.noted = {}, time.monotonic(), 0.0

    def one(self, data):
        """Try one input."""
        self.counts["executions"] += 1
        try:
            self.counts["accepted" if self.target.run(data) else "refused"] += 1
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust's is no Exception
            self.note(error, data)
        passed = time.monotonic() - self.began
        if passed > min(self.noted + 1, self.seconds):
            self.noted = passed
            facts = {**self.counts, "seconds": passed, "defects": self.defects}
            (self.place / "counts.json").write_text(json.dumps(facts))
        if passed > self.seconds:
            os._exit(0)

    def note(self, error, data):
        """Keep the first input of each kind of defect, named after the file that it stands for."""
        mark = signature(error)
        if mark in self.defects:
            return
        self.defects[mark] = traceback.format_exc()
        name = Path(self.target.files[data[0] % len(self.target.files)]).name
        (self.place / "found").mkdir(exist_ok=True)
        (self.place / "found" / f"{name}--{hashlib.sha256(data).hexdigest()[:8]}").write_bytes(data[1:])


def campaign(name, seconds, place, seed):
    """Fuzz one target in this process until the time is up; counts go to PLACE/counts.json as they rise."""
    import atheris

    with atheris.instrument_imports(include=["dcdt"]):
        import targets

        target = targets.make(name, place / "base")
    from mutations import mutate
    from structures import restructure

    corpus = target.corpus()
    (place / "corpus").mkdir()
    for at, content in enumerate(corpus):
        (place / "corpus" / f"seed{at}").write_bytes(content[:LONGEST])

    def custom(data, most, number):
        rng = random.Random(number)
        if rng.random() < 0.2:
            return atheris.Mutate(data, most)
        if data and rng.random() < 0.6:
            whole = rng.choice(corpus) if rng.random() < 0.6 else data  # what bytes were changed in seldom parses
            content = restructure(target.files[whole[0] % len(target.files)], whole[1:], number)
            if content is not None and len(content) < most:
                return whole[:1] + content
        n = rng.choice((1, 1, 1, 2, 3))
        steps = [(rng.randrange(99), rng.random(), rng.random(), rng.randrange(9999)) for _ in range(n)]
        return (data[:1] + mutate(data[1:], steps, rng.choice(corpus)[1:]))[:most]

    options = [f"-max_total_time={seconds + 120}", f"-max_len={LONGEST}", f"-seed={seed}", "-timeout=30"]
    options += ["-rss_limit_mb=6000", f"-artifact_prefix={place}/", str(place / "corpus")]
    atheris.Setup([sys.argv[0], *options], Tally(target, seconds, place).one, custom_mutator=custom)
    atheris.Fuzz()


def signature(error):
    """What makes two defects one: the kind of error and the last line of ours that it passed."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "dcdt" in frame.filename]
    last = frames[-1] if frames else traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(last.filename).name}:{last.name}: {last.line}"


def fuzz(name, seconds, seed):
    """One target in its own process: its counts, and what ended it where that was not the clock."""
    with tempfile.TemporaryDirectory(prefix=f"fuzz-{name}-") as text:
        place = Path(text)
        command = [sys.executable, __file__, name, "--seconds", str(seconds), "--place", text, "--seed", str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "DCDT_CACHE": str(place / "cache")}
        with (place / "log").open("w") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=subprocess.STDOUT, check=False)
        log = (place / "log").read_text(errors="replace")
        counts = json.loads((place / "counts.json").read_text()) if (place / "counts.json").is_file() else {}
        covered = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)
        if covered:
            counts |= dict(zip(("edges", "features", "corpus"), map(int, covered[-1]), strict=True))
        if done.returncode != 0:
            counts["ended"] = log[-3000:]
        kept = HERE.parent.parent / "outputs" / "fuzz" / name
        for path in [*place.glob("found/*"), *place.glob("crash-*"), *place.glob("timeout-*"), *place.glob("oom-*")]:
            kept.mkdir(parents=True, exist_ok=True)
            (kept / path.name).write_bytes(path.read_bytes())
        return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", help="all where none is named")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (1)")
    parser.add_argument("--place", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", action="store_true", help="put the counts into results.json")
    given = parser.parse_args()
    if given.place:
        logging.getLogger("dcdt.serve").setLevel(logging.CRITICAL)  # each request tried would be a line
        campaign(given.targets[0], given.seconds, given.place, given.seed)
        return
    from targets import TARGETS

    found = {}
    for name in given.targets or TARGETS:
        found[name] = fuzz(name, given.seconds, given.seed)
        shown = {key: value for key, value in found[name].items() if key not in ("defects", "ended")}
        print(name, json.dumps(shown), flush=True)
        for mark, text in found[name].get("defects", {}).items():
            print(f"  DEFECT {mark}\n{text}", flush=True)
        if "ended" in found[name]:
            print(f"  ENDED {found[name]['ended']}", flush=True)
    if given.write:
        write_results(found, given)
    bad = [name for name, counts in found.items() if counts.get("defects") or "ended" in counts]
    raise SystemExit(1 if bad else 0)


def write_results(found, given):
    """Merge the counts of these targets into results.json, each with its date and command, and renew the page."""
    from counts import renew

    path = HERE / "results.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    for name, counts in found.items():
        facts = {key: counts.get(key) for key in ("seeds", "executions", "accepted", "refused", "edges", "corpus")}
        known[name] = {
            **facts,
            "seconds": given.seconds,
            "defects": len(counts.get("defects", {})) + ("ended" in counts),
            "date": time.strftime("%Y-%m-%d"),
            "command": f"python tests/fuzz/fuzz.py {name} --seconds {given.seconds} --seed {given.seed} --write",
            "collections": 1 + len(list(Path(os.environ["DCDT_COLLECTIONS"]).glob("*/corpus.jsonl")))
            if os.environ.get("DCDT_COLLECTIONS")
            else 1,
            "atheris": version("atheris"),
        }
    path.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")
    renew()


if __name__ == "__main__":
    main()
