#!/usr/bin/env bash
# Everything that only a GPU can show, in one call of at most 9 minutes (LIMIT, in seconds): the design card's two
# commands with their logs, every kind of model and of batch, GPU against CPU, the tests marked gpu, a profile of a step,
# and benchmarks/gpu.py. For a machine with a GPU, Python 3.12 and torch, which may have no network.
# DEVICE=cpu tries the script itself on a machine without a GPU.
#
# 1. Where packages can be downloaded, in the root of the repository (31 MiB of wheels, which git is told to ignore):
#      echo /.whl/ >> .git/info/exclude; bash benchmarks/run_gpu.sh fetch
#    Expected on the GPU machine: torch, lightning, torchmetrics, numpy, scipy, pyarrow, rich, matplotlib, safetensors,
#    threadpoolctl, pyyaml, packaging, pytest (with xdist) and hypothesis. The wheels hold the rest of what a run on
#    data/linear_algebra needs; its vectors are in the repository, so no embedder is carried.
# 2. There, in the root of the repository, with .whl beside it:
#      OUT=/tmp/gpu bash benchmarks/run_gpu.sh > /tmp/gpu.log 2>&1; tail -c 11000 /tmp/gpu.log
#    $OUT then holds the logs of the two commands, the sweep's table and the benchmark's results.
set -u
cd "$(git rev-parse --show-toplevel 2>/dev/null || dirname "$(dirname "$(realpath "$0")")")" || exit 1
PY=${PY:-python3}; DEVICE=${DEVICE:-gpu}; OUT=${OUT:-/tmp/run_gpu_out}; LIMIT=${LIMIT:-540}; START=$(date +%s)
mkdir -p "$OUT"

if [ "${1:-}" = fetch ]; then
  C=.ci/constraints.txt; mkdir -p .whl
  names='hydra-core omegaconf rank-bm25 implicit wandb pydantic pydantic_core annotated-types typing-inspection platformdirs typing_extensions distro sniffio protobuf click cwevals googleapis-common-protos opentelemetry-[a-z-]*'
  pins=$(for n in $names; do grep -iE "^$n==" $C; done | sort -u)
  $PY -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux1_x86_64 -d .whl $pins || exit 1
  $PY -m pip wheel -q --no-deps -w .whl "$(grep -iE '^antlr4' $C)" || exit 1
  ls -l .whl; du -sh .whl; exit 0
fi

say() { printf '\n=== [%3d s] %s\n' $(( $(date +%s) - START )) "$*"; }
left() { echo $(( LIMIT - $(date +%s) + START )); }
declare -A RESULT; ORDER=()
step() { # name seconds command...
  local name=$1 most=$2 t; shift 2; ORDER+=("$name")
  t=$(left); [ "$t" -lt "$most" ] && most=$t
  if [ "$most" -lt 5 ]; then RESULT[$name]="no time left"; return; fi
  say "$name (at most $most s)"; local s=$(date +%s); timeout "$most" "$@"; local rc=$?
  RESULT[$name]="rc $rc, $(( $(date +%s) - s )) s"
}
verdicts() { say "summary"; for n in "${ORDER[@]}"; do printf '%-34s %s\n' "$n" "${RESULT[$n]}"; done; }
trap verdicts EXIT

if [ -d .whl ] && [ "${INSTALL:-1}" = 1 ]; then
  $PY -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl || exit 1
  export PYTHONPATH=/tmp/site${PYTHONPATH:+:$PYTHONPATH}
fi
export PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$PWD  # the package is not installed there: benchmarks/*.py would not find it
export DCDT_OUTPUTS=${DCDT_OUTPUTS:-/tmp/dcdt_out} PYTHONUNBUFFERED=1 WANDB_MODE=offline TORCHINDUCTOR_CACHE_DIR=/tmp/inductor
[ "$DEVICE" = gpu ] && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
$PY - <<'P' || exit 1
import sys, torch, lightning, hydra, omegaconf, wandb, rank_bm25
print(sys.version.split()[0], "torch", torch.__version__, "lightning", lightning.__version__, "hydra", hydra.__version__, "wandb", wandb.__version__, "cuda", torch.cuda.is_available())
P
T="trainer=$DEVICE callbacks.progress=false"; R="$PY -m dcdt.run"

# 1. the design card's two commands, whose logs are kept whole; the first finds what the CPU cannot show
logged() { local name=$1 most=$2; shift 2; step "$name" "$most" bash -o pipefail -c '"$@" 2>&1 | tee -a "$0"' "$OUT/card.log" "$@"; }
date -u +"%Y-%m-%d, trainer=$DEVICE" > "$OUT/card.log"
logged "dcdt.run model=dcdt"       60 $R model=dcdt $T logger.mode=offline hydra.run.dir=$DCDT_OUTPUTS/card
logged "-m ablation_sampler"      150 $R -m experiment=ablation_sampler split.index=0,1 $T logger.mode=offline hydra.sweep.dir=$DCDT_OUTPUTS/sweep
# 2. every kind of model and of batch
step "paper preset"                60 $R $T experiment=paper trainer.max_epochs=5 logger=none hydra.run.dir=$DCDT_OUTPUTS/paper
step "zero_shot"                   40 $R $T model=zero_shot logger=none hydra.run.dir=$DCDT_OUTPUTS/zero
step "single_tower"                40 $R $T model=single_tower trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/single
step "infonce, catalogue"          40 $R $T experiment=residual trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/residual
step "triplet, in_batch"           40 $R $T loss=triplet sampler=in_batch trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/triplet
step "dynamic_hard"                40 $R $T sampler=dynamic_hard sampler.warm_up=1 sampler.every=1 trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/dynamic
step "best (hybrid_towers)"        40 $R $T experiment=best logger=none hydra.run.dir=$DCDT_OUTPUTS/best
step "two_stage_joint"             40 $R $T model=two_stage_joint loss=infonce trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/joint
# 3. GPU against CPU on the same run: the metrics of fp32 training must agree to about 1e-3, those of zero_shot to 1e-6
step "cpu reference"           60 $R trainer=cpu callbacks.progress=false model.dropout=0 trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/c
step "gpu, fp32"               60 $R $T trainer.precision=32-true trainer.embedding_dtype=float32 model.dropout=0 trainer.max_epochs=3 logger=none hydra.run.dir=$DCDT_OUTPUTS/g
step "gpu against cpu"         20 $PY - <<P
import json
c, g = (json.load(open(f"$DCDT_OUTPUTS/{x}/metrics.json")) for x in "cg")
for part in ("zero_shot/test/mrr", "test/mrr", "val/mrr"): print(part, c[part], g[part], abs(c[part] - g[part]))
P
step "pytest -m gpu"           60 $PY -m pytest -q -m gpu tests/evaluation -p no:cacheprovider
# 4. steps a second at batch 16, and where the time goes: the profiler's table of one epoch
step "profile, batch 16"       60 $PY - <<P
import sys, time, torch; sys.path.insert(0, "benchmarks")
from synthetic import *
from training import Turns, turns
s = settings_of("trainer=$DEVICE", "sampler=random", "batch_size=16", "trainer.max_epochs=2")
c = collection_of(4096 + 64, 2000); sp = split_of(c, 32); d = data_of(s, c, sp, t := half_tables(len(c.queries), 2000))
wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
seconds = sorted(turns(s, t, d, Turns({}, 64, wait)).seconds["framework"]); print("ms a step, batch 16:", round(1e3 * seconds[len(seconds) // 2], 3))
P
# 5. the benchmark, small catalogue first (about 2 minutes), the documented size with what is left (it may not fit: see report)
if [ "$DEVICE" = gpu ]; then
  step "benchmark, 200k videos"  200 $PY benchmarks/gpu.py --videos 200000 --queries 131072 --batches 1024 16384 65536 --out "$OUT/gpu_200k.json"
  step "benchmark, 1M videos"    400 $PY benchmarks/gpu.py --batches 65536 --out "$OUT/gpu.json"
else
  step "benchmark (no GPU: says so)" 60 $PY benchmarks/gpu.py --out "$OUT/gpu.json"
fi
cp "$DCDT_OUTPUTS"/sweep/report/table.md "$OUT/" 2>/dev/null || true
