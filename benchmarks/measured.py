"""Shared by all benchmarks: medians of interleaved repeats, rows with a target, result files."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path

from dcdt.utils.files import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results"
Row = dict[str, object]
Job = Callable[[], float | None]


def interleaved(jobs: Mapping[str, Job], repeats: int, warm: int = 1) -> dict[str, list[float]]:
    """Time jobs in turns, so that other load of the machine affects all of them.

    Args:
        jobs: name to what is timed; a job that returns a number has timed itself.
        repeats: rounds that count.
        warm: rounds before them that do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(-warm, repeats):
        for name, job in jobs.items():
            started = time.perf_counter()
            own = job()
            took = time.perf_counter() - started if own is None else own
            if turn >= 0:
                seconds[name].append(took)
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """Divide the seconds of one job by those of another; the median over the rounds."""
    return statistics.median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))


def median(values: list[float]) -> float:
    """Return the median of a job's seconds."""
    return statistics.median(values)


def row(
    question: str,
    value: float,
    unit: str,
    against: str,
    ratio: float | None = None,
    target: str = "report",
    holds: bool | None = None,
) -> Row:
    """Make a result row, rounded to three digits, and print it."""
    found = {
        "question": question,
        "value": _rounded(value),
        "unit": unit,
        "against": against,
        "ratio": None if ratio is None else _rounded(ratio),
        "target": target,
        "holds": None if holds is None else bool(holds),
    }
    verdict = {None: "", True: "  holds", False: "  DOES NOT HOLD"}[found["holds"]]
    shown = "" if ratio is None else f"  ratio {found['ratio']:g}"
    print(f"{question}: {found['value']:g} {unit}{shown} against {against} (target: {target}){verdict}", flush=True)
    return found


def forget_peak() -> float:
    """Reset the peak memory of this process (Linux); returns the MB in use now."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def peak() -> float:
    """Peak resident memory of this process since `forget_peak`, MB."""
    return _status("VmHWM")


def anonymous() -> float:
    """Resident memory of this process that no file backs, MB: the system cannot reclaim it."""
    return _status("RssAnon")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(name))) / 1024


def machine() -> str:
    """Processor, cores, Python and torch of this machine."""
    import torch

    model = platform.processor() or platform.machine()
    described = Path("/proc/cpuinfo")
    if described.is_file():
        names = [line.split(":", 1)[1].strip() for line in described.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}"


def merge(out: Path, rows: list[Row]) -> None:
    """Replace rows of the same question in a result file; each row has its own date."""
    today = date.today().isoformat()
    known = {one["question"]: one for one in read_json(out).get("rows", [])}
    known |= {one["question"]: {"date": today, **one} for one in rows}
    kept = list(known.values())
    write_json(out, {"rows": kept, "date": max(str(one["date"]) for one in kept), "machine": machine()})


def write(out: str | Path, rows: list[Row], n: int) -> None:
    """Write the result file: rows, date, machine and the size that was measured.

    Args:
        out: the file.
        rows: what was measured.
        n: the size (of the catalogue, unless a row says otherwise).
    """
    write_json(Path(out), {"rows": rows, "date": date.today().isoformat(), "machine": machine(), "n": n})
    print(json.dumps({"written": str(out), "rows": len(rows)}), flush=True)


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
