#!/usr/bin/env bash
# Run every sweep behind docs/results and write its reports into $DCDT_OUTPUTS/tables/PAGE, one folder a table.
#
#     DCDT_COLLECTIONS=... DCDT_OUTPUTS=... bash benchmarks/studies/results.sh [PAGE ...]
#
# Without a PAGE all but `sealed`, which is scored once a release. Finished jobs are skipped when it is started again;
# with ONLY_REPORTS=1 no job is started.
# Scripts that print their own tables stand at the end of the pages: embedder_weights, finetune, udemy_interactions.
set -euo pipefail
: "${DCDT_COLLECTIONS:?}" "${DCDT_OUTPUTS:?}"
FOLDS='split=folds split.index=range(0,10)'
PASSAGES=zero_shot_transcript,bm25_transcript,hybrid_passages,hybrid_transcript,dcdt_ridge_transcript,hybrid_towers_transcript
COMMON='logger=csv trainer.threads=1 callbacks.progress=false sweep.report=false'

data() { [ "$1" = linear_algebra ] && echo data=linear_algebra || echo "data=files data.path=$DCDT_COLLECTIONS/$1"; }

# sweep NAME OVERRIDE ...: into a folder of its own, so that reports need no search
sweep() {
  local name=$1
  shift
  [ -n "${ONLY_REPORTS:-}" ] && return
  # shellcheck disable=SC2086
  python -m dcdt.run -m "$@" $COMMON "hydra.sweep.dir=$DCDT_OUTPUTS/sweeps/$name"
}

# report TABLE NAME ...: of the sweeps NAME, by MRR and by nDCG@10
report() {
  local table=$1
  shift
  python -m dcdt.report "${@/#/$DCDT_OUTPUTS/sweeps/}" --out "$DCDT_OUTPUTS/tables/$table"
  python -m dcdt.report "${@/#/$DCDT_OUTPUTS/sweeps/}" --out "$DCDT_OUTPUTS/tables/$table-ndcg" --metric ndcg@10
  find -L "${@/#/$DCDT_OUTPUTS/sweeps/}" -name provenance.json -exec grep -ho '"commit": "[0-9a-f]\{7\}' {} + |
    cut -d '"' -f 4 | sort -u | tee "$DCDT_OUTPUTS/tables/$table/commits.txt" > "$DCDT_OUTPUTS/tables/$table-ndcg/commits.txt"
}

# shellcheck disable=SC2046,SC2086
comparison() { # linear_algebra_comparison, khan_math, cranfield
  sweep "comparison_$1" experiment=comparison trials=2 $(data "$1")
  sweep "residual_$1" experiment=residual model=dcdt_residual $FOLDS trials=2 $(data "$1")
  report "$1" "comparison_$1" "residual_$1"
}

# shellcheck disable=SC2046,SC2086
page() {
  local one
  case $1 in
    khan_math | cranfield) comparison "$1" ;;
    lecture_questions) # one trial each, and no single_tower: its trainings would take a day here
      sweep comparison_lecture_questions experiment=comparison trials=1 $(data $1) \
        model=zero_shot,zero_shot_whitened,bm25,hybrid,dcdt_ridge,hybrid_towers,dcdt
      sweep residual_lecture_questions experiment=residual model=dcdt_residual $FOLDS trials=1 $(data $1)
      report lecture_questions comparison_lecture_questions residual_lecture_questions ;;
    linear_algebra_comparison) comparison linear_algebra ;;
    linear_algebra)
      sweep printed $FOLDS seed=0,1,2 model=zero_shot,dcdt
      report linear_algebra_printed printed ;;
    paper_split)
      sweep paper experiment=paper 'split.index=range(0,10)' seed=0,1,2 model=zero_shot,dcdt
      report paper_split paper
      local each="split.index=range(0,10) seed=0,1,2"
      sweep paper_zero_shot experiment=paper $each model=zero_shot
      sweep paper_stopping experiment=paper $each model=dcdt callbacks.monitor=val/mrr,val/loss,none
      sweep paper_checkpoint experiment=paper $each model=dcdt callbacks.monitor=val/loss callbacks.checkpoint_by=monitor
      report paper_stopping paper_zero_shot paper_stopping paper_checkpoint
      python benchmarks/studies/stopping.py "$DCDT_OUTPUTS"/sweeps/paper_{stopping,checkpoint} \
        > "$DCDT_OUTPUTS/tables/paper_stopping/validation.md" ;;
    ablations)
      for one in modality sampler loss attention fusion; do
        sweep "ablation_$one" "experiment=ablation_$one"
        report "ablation_$one" "ablation_$one"
      done ;;
    towers)
      for one in khan_math cranfield linear_algebra lecture_questions; do
        sweep "towers_$one" experiment=comparison trials=1 $(data $one) \
          model=zero_shot,zero_shot_whitened,bm25,hybrid,dcdt_ridge,hybrid_towers
        report "towers_$one" "towers_$one"
      done ;;
    learning_curve)
      for one in khan_math cranfield linear_algebra lecture_questions; do
        sweep "curve_$one" experiment=learning_curve $(data $one)
        report "curve_$one" "curve_$one"
      done ;;
    two_stage)
      for one in khan_math cranfield linear_algebra; do
        for model in hybrid_towers two_stage dcdt_ridge two_stage_ridge; do
          sweep "${model}_$one" $FOLDS "model=$model" $(data $one)
        done
        sweep "two_stage_joint_$one" experiment=two_stage_joint $FOLDS $(data $one)
        report "two_stages_$one" {hybrid_towers,two_stage,two_stage_joint,dcdt_ridge,two_stage_ridge}_$one
        report "two_stage_$one" "hybrid_towers_$one" "two_stage_$one"
        report "two_stage_joint_$one" "two_stage_$one" "two_stage_joint_$one"
        report "two_stage_ridge_$one" "dcdt_ridge_$one" "two_stage_ridge_$one"
      done ;;
    personalisation)
      local udemy="$(data udemy_interactions) split=time trainer=cpu trials=4"
      sweep udemy_items $udemy model=collaborative model.kind=popularity,cosine,tfidf,bm25
      sweep udemy_als $udemy trials=8 model=collaborative model.kind=als
      sweep udemy_linear $udemy trials=8 model=collaborative model.kind=ease,slim,bpr
      sweep udemy_texts $udemy model=zero_shot,zero_shot_history
      sweep udemy_whitened $udemy model=zero_shot_history model.whiten=soft
      sweep udemy_towers $udemy model=dcdt_history model.history=mean,attention
      sweep udemy_frozen $udemy model=dcdt_history model.videos=frozen
      sweep udemy_hybrid $udemy model=hybrid_history
      sweep udemy_hierarchical $udemy model=dcdt_hierarchical model.units=sessions,topics
      sweep udemy_ease $udemy model=hybrid_ease
      report udemy udemy_items udemy_als udemy_linear udemy_texts udemy_whitened udemy_towers udemy_frozen \
        udemy_hybrid udemy_hierarchical udemy_ease ;;
    transcripts)
      for one in lecture_questions khan_math; do
        sweep "transcripts_$one" experiment=ablation_transcript $(data $one) model=$PASSAGES
        sweep "without_$one" experiment=ablation_transcript $(data $one) model=zero_shot,hybrid_towers,hybrid,bm25
        report "transcripts_$one" "transcripts_$one" "without_$one"
      done
      python benchmarks/studies/spoken_videos.py "$DCDT_COLLECTIONS/khan_math" \
        "$DCDT_OUTPUTS"/sweeps/{transcripts,without}_khan_math > "$DCDT_OUTPUTS/tables/transcripts_khan_math/spoken.md"
      exercises_with_transcripts
      sweep transcripts_exercises $FOLDS data=files "data.path=$DCDT_OUTPUTS/khan_exercises" \
        model=zero_shot,zero_shot_transcript,bm25,bm25_transcript,hybrid,hybrid_transcript
      report transcripts_exercises transcripts_exercises ;;
    encoder)
      for one in khan_math cranfield linear_algebra lecture_questions; do
        for model in encoder hybrid_encoder; do sweep "${model}_$one" experiment=$model $FOLDS $(data $one); done
        sweep "frozen_$one" $FOLDS model=zero_shot,dcdt_ridge,hybrid_towers $(data $one)
        report "encoder_$one" {encoder,hybrid_encoder,frozen}_$one
      done ;;
    federated) # FedAvg and FedAdam with DCDT_FLOWER, the python of an environment with Flower (docs/federation.md)
      for one in linear_algebra khan_math lecture_questions; do
        local schools=5
        [ "$one" = lecture_questions ] && schools=subject
        sweep "federated_$one" experiment=federated "split.schools=$schools" $(data $one)
        sweep "federated_residual_$one" experiment=residual $FOLDS "split.schools=$schools" $(data $one)
        if [ -n "${DCDT_FLOWER:-}" ] && [ -z "${ONLY_REPORTS:-}" ]; then
          "$DCDT_FLOWER" benchmarks/studies/flower.py "$DCDT_OUTPUTS/sweeps/federated_flower_$one" \
            "split.schools=$schools" $(data $one)
        fi
        local sweeps=("federated_$one" "federated_residual_$one")
        [ -d "$DCDT_OUTPUTS/sweeps/federated_flower_$one" ] && sweeps+=("federated_flower_$one")
        report "federated_$one" "${sweeps[@]}"
        python benchmarks/studies/federated.py "${sweeps[@]/#/$DCDT_OUTPUTS/sweeps/}" \
          > "$DCDT_OUTPUTS/tables/federated_$one/exchanges.md"
      done ;;
    simulated) # the end of personalisation.md
      sweep simulated $FOLDS trainer=cpu model=zero_shot,dcdt_history,collaborative
      sweep simulated_kinds $FOLDS trainer=cpu model=dcdt_history model.history=mean,none
      report simulated simulated simulated_kinds ;;
    weak)
      weak_collection
      for one in weak judged all; do
        sweep "weak_$one" $FOLDS model=dcdt_ridge model.fit_on=train "split.train_on=$one" \
          data=files "data.path=$DCDT_OUTPUTS/khan_weak"
      done
      sweep weak_cosine $FOLDS model=zero_shot,zero_shot_whitened split.train_on=judged \
        data=files "data.path=$DCDT_OUTPUTS/khan_weak"
      report weak weak_weak weak_judged weak_all weak_cosine ;;
    sealed)
      for one in khan_math cranfield linear_algebra; do
        sweep "final_$one" experiment=final $(data $one)
        report "final_$one" "final_$one"
      done ;;
    *) echo "no page $1" >&2 && exit 2 ;;
  esac
}

exercises_with_transcripts() { # they ask about the videos of khan_math
  [ -d "$DCDT_OUTPUTS/khan_exercises" ] && return
  cp -r "$DCDT_COLLECTIONS/khan_exercises" "$DCDT_OUTPUTS/khan_exercises.new"
  chmod -R u+w "$DCDT_OUTPUTS/khan_exercises.new"
  cp "$DCDT_COLLECTIONS/khan_math/transcripts.jsonl" "$DCDT_OUTPUTS/khan_exercises.new"
  mv "$DCDT_OUTPUTS/khan_exercises.new" "$DCDT_OUTPUTS/khan_exercises"
}

weak_collection() { # Khan maths as CSV, with its titles as weak queries
  [ -d "$DCDT_OUTPUTS/khan_weak" ] && return
  python - "$DCDT_COLLECTIONS/khan_math" "$DCDT_OUTPUTS" << 'PYTHON'
import csv, json, sys
from pathlib import Path

source, out = (Path(name) for name in sys.argv[1:])
videos = [json.loads(line) for line in (source / "corpus.jsonl").read_text().splitlines()]
questions = {row["_id"]: row["text"] for row in map(json.loads, (source / "queries.jsonl").read_text().splitlines())}
judged = [row.split("\t") for path in (source / "qrels").glob("*.tsv") for row in path.read_text().splitlines()[1:]]
tables = {
    "videos": [("id", "title", "text"), *((video["_id"], video["title"], video["text"]) for video in videos)],
    "asked": [("query", "video_id"), *((questions[query], video) for query, video, grade in judged if int(grade) > 0)],
}
for name, rows in tables.items():
    with (out / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
PYTHON
  python -m dcdt.collection new "$DCDT_OUTPUTS/khan_weak" --videos "$DCDT_OUTPUTS/videos.csv" \
    --queries "$DCDT_OUTPUTS/asked.csv" --bootstrap-queries titles
}

ALL='linear_algebra paper_split linear_algebra_comparison ablations khan_math cranfield towers learning_curve two_stage
weak personalisation simulated federated lecture_questions transcripts encoder'
for name in "${@:-$ALL}"; do for one in $name; do page "$one"; done; done
