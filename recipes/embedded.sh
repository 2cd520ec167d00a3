#!/usr/bin/env bash
# The embedded model from its raw sources to its gates, stage by stage:
#
#     recipes/embedded.sh RAW [--from STAGE] [NAME=VALUE ...]
#
# RAW is the folder of raw sources (leadline/embedded/ATTRIBUTION.md). A stage that is complete is left alone, one that was
# stopped or killed goes on, and so does the script when it is run again. --from repeats the data stages from STAGE on.
# NAME=VALUE goes to every training stage as --set: device=cpu trains without a GPU, slowly (see the recipes' first lines).
set -euo pipefail
cd "$(dirname "$0")/.."

STAGES="documents recall chats lessons tokenizer shards alignment check pretrain extend sft average renew renew_sft mix"
STAGES+=" helpful safety grpo install gates"
RUNS=runs/embedded
DATA=$RUNS/data
RECIPES=recipes/embedded

[[ $# -ge 1 && -d $1 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
RAW=$1; shift
FROM=""
SETTINGS=()
while [[ $# -gt 0 ]]; do
    case $1 in
        --from) FROM=${2:?--from needs a stage}; shift ;;
        *=*) SETTINGS+=(--set "$1") ;;
        *) echo "embedded.sh: $1 is neither --from nor NAME=VALUE" >&2; exit 2 ;;
    esac
    shift
done
[[ -z $FROM || " $STAGES " == *" $FROM "* ]] || { echo "embedded.sh: the stages are $STAGES" >&2; exit 2; }
mkdir -p "$DATA/done"

build() { python "$RECIPES/build_data.py" "$1" "$RAW" "$DATA"; }
shards() { leadline train data "$RECIPES/$1.toml" --folder "$DATA"; }
train() { leadline train "$1" "$RECIPES/$2.toml" "${SETTINGS[@]}"; }

run_stage() {
    case $1 in
        documents | recall | chats | lessons | tokenizer | alignment | check) build "$1" ;;
        shards) shards corpus; shards long; shards renew_corpus ;;
        pretrain | extend | sft) train "$1" "$1" ;;
        average) python "$RECIPES/average.py" "$RUNS/pretrain/model" "$RUNS/sft/model" 0.6 "$RUNS/average/model" ;;
        renew) train pretrain renew ;;
        renew_sft) train sft renew_sft ;;
        mix) python "$RECIPES/average.py" "$RUNS/renew/model" "$RUNS/renew_sft/model" 0.5 "$RUNS/mix/model" ;;
        helpful | safety) train reward "$1" ;;
        grpo) train grpo grpo ;;
        install) python "$RECIPES/average.py" "$RUNS/grpo/model" "$RUNS/grpo/model" 1 leadline/embedded/model ;;  # in bf16
        gates)
            python "$RECIPES/ngram_baseline.py" "$DATA/pretrain"
            python "$RECIPES/held_out_sample.py" "$DATA/pretrain"
            python "$RECIPES/samples.py"
            python -m pytest tests/e2e/test_embedded.py
            ;;
    esac
}

started=""
for stage in $STAGES; do
    [[ $stage == "$FROM" ]] && started=yes
    [[ -n $started ]] && rm -f "$DATA/done/$stage"
    [[ -e $DATA/done/$stage ]] && continue
    echo "== $stage"
    run_stage "$stage"  # a stage of training that was stopped exits with 130 and ends the script
    touch "$DATA/done/$stage"
done
echo "complete: leadline/embedded/model"
