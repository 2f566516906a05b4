"""The quick set of `make bench`: the measurements of docs/performance.md at a size that takes minutes.

Serving and embedding are not among them: they need a finished run or an embedder (benchmarks/serving.py, embedding.py).
Results go to outputs/bench, not to benchmarks/results, whose figures are of full size. One script after the other, each
in a process of its own, so that none measures what another left in memory.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "outputs" / "bench"
SET = {
    "training": "--queries 8192 --videos 8192 --repeats 3",
    "small_run": "--epochs 20 --repeats 3",
    "mining": "--queries 2000 --videos 20000 --repeats 3",
    "evaluation": "--queries 2000 --videos 50000 --portions 5",
    "studies/metrics": "--queries 2000 --repeats 1",
    "studies/bm25": "--videos 20000 --queries 50 --repeats 1",
    "startup": "--repeats 2",
    "memory": "--videos 50000 --queries 4000",
    "studies/growth": "--sizes 1000 10000 50000 --repeats 1 --no-index",
    "gpu": "",
}


def main() -> None:
    """Run every script; exit code 1 if one failed."""
    failed = []
    for name, arguments in SET.items():
        print(f"== {name}", flush=True)
        extra = ["--image", str(OUT / "growth.png")] if name == "studies/growth" else []
        command = [sys.executable, str(HERE / f"{name}.py"), *arguments.split(), *extra]
        if subprocess.run([*command, "--out", str(OUT / f"{Path(name).name}.json")]).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
