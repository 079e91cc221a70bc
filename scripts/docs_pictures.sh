#!/usr/bin/env bash
# The runs and pictures of docs/blocks.md and docs/metrics.md: every preset on the sources of this project's dependencies,
# 4 blocks of 128 channels, 200 steps of 16 x 128 tokens at a learning rate of 1e-2, which is too large for many,
# since outliers grow with it; and OP with SOAP at 3e-3 for the pictures of metrics. About ten minutes on two cores.
#     scripts/docs_pictures.sh [FOLDER FOR DATA AND RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
work=${1:-target/docs-pictures}
program=${PROGRAM:-target/release/evenkeel}
[ -x "$program" ] || cargo build --release
ek() { "$program" "$@"; }
mkdir -p "$work/runs"
if [ ! -d "$work/data" ]; then
  ek data tokenize "${CARGO_HOME:-$HOME/.cargo}"/registry/src/*/{candle-core,faer,tokenizers,clap_builder,rayon}-*/ \
    --glob '*.rs' --train-bpe 2048 --out "$work/data"
fi
run() { # name, preset, more
  local name=$1 preset=$2
  shift 2
  [ -d "$work/runs/$name" ] && return
  printf '[model]\npreset = "%s"\n' "$preset" > "$work/run.toml"
  # A run that the guard stops is a result, too: op_no_entropy is there to fail.
  ek train "$work/run.toml" --out "$work/runs/$name" --no-progress --quiet \
    --set model.depth=4 --set model.width=128 --set model.heads=4 --set data.path="$work/data" \
    --set optim.lr_peak=1e-2 --set train.steps=200 --set train.batch_sequences=16 --set train.eval_tokens=65536 \
    --set train.eval_every_steps=0 --set train.checkpoint_every_steps=0 "$@" || true
}
# Those of text.
all=$(ek config list | awk '{print $1}' | grep -v '^vit')
everything="--set telemetry.gram_every_steps=10 --set telemetry.token_metrics=true --set telemetry.moments_every_steps=1"
for preset in $all; do
  case $preset in
    pre_ln) run "$preset" "$preset" $everything ;;
    *) run "$preset" "$preset" ;;
  esac
done
run op_soap op $everything --set optim.name=soap --set optim.lr_peak=3e-3 --set optim.max_precond_dim=1024
ek report $(for preset in $all; do echo "$work/runs/$preset"; done) --out "$work/all" --force
ek report "$work/runs/pre_ln" "$work/runs/op_soap" --out "$work/two" --force
rm -rf docs/img/metrics "$work/two"
mkdir -p docs/img/metrics
cp "$work/all/kurtosis.svg" docs/img/blocks-kurtosis.svg
for figure in $(grep -oh 'img/metrics/[^)]*\.svg' docs/*.md | sort -u); do cp "$work/two/${figure##*/}" docs/img/metrics/; done
