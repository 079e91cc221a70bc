#!/usr/bin/env bash
# Do outlier features depend on the basis that an optimiser works in? He et al. find that on Pre-SRMSNorm AdamW and
# AdaFactor grow them and that SOAP and rotated AdaFactor, which do the same in the eigenbasis of Shampoo's factors, do not.
# Four optimisers, three seeds, one learning rate, 4 blocks of 128 channels, on the sources of this project's
# dependencies; under half an hour on two cores. Writes docs/img/rotation-kurtosis.svg and experiments/rotation.json.
#     scripts/rotation_experiment.sh [FOLDER FOR DATA AND RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-target/rotation}
program=${PROGRAM:-target/release/evenkeel}
[ -n "${PROGRAM:-}" ] || cargo build --release
steps=${STEPS:-600} lr=${LR:-1e-2}
mkdir -p "$work/runs-$steps-$lr"
if [ ! -d "$work/data" ]; then
  "$program" data tokenize "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/{candle-core,faer,tokenizers,clap_builder,rayon}-*/ \
    --glob '*.rs' --train-bpe 2048 --out "$work/data"
fi
begun=$SECONDS
runs=()
for seed in 0 1 2; do
  for optimizer in adamw adafactor rotated_adafactor soap; do
    run="$work/runs-$steps-$lr/$optimizer-$seed"
    runs+=("$run")
    # What is finished stays; what was cut off begins anew.
    grep -qs '"status": *"\(finished\|diverged\)"' "$run/run.json" && continue
    # The vocabulary's side keeps the identity, as the published implementations have it.
    rotation=()
    case $optimizer in rotated_adafactor | soap) rotation=(--set optim.max_precond_dim=1024) ;; esac
    printf '[model]\npreset = "pre_srms"\n[optim]\nname = "%s"\nbeta1 = 0.9\nbeta2 = 0.95\n' "$optimizer" > "$work/run.toml"
    "$program" train "$work/run.toml" --out "$run" --no-progress --quiet --seed "$seed" --force \
      --set model.depth=4 --set model.width=128 --set model.heads=4 --set data.path="$work/data" \
      --set optim.lr_peak="$lr" --set train.steps="$steps" --set train.batch_sequences=16 --set train.eval_tokens=65536 \
      --set train.eval_every_steps=0 --set train.checkpoint_every_steps=0 "${rotation[@]}" || [ $? -eq 1 ]
    echo "$optimizer, seed $seed: $((SECONDS - begun)) s since the first began"
  done
done
"$program" report "${runs[@]}" --out "$work/report" --force
cp "$work/report/kurtosis.svg" docs/img/rotation-kurtosis.svg
cp "$work/report/summary.json" experiments/rotation.json
