#!/usr/bin/env bash
# Writes the list of crates whose sources are the quickstart's corpus: those that a build of the binary fetches on
# every platform, so that the text is the same everywhere. Versions come from Cargo.lock at compile time; where that
# holds one more, for a feature that is off, the list names those of the build.
set -euo pipefail
cd "$(dirname "$0")/.."
targets=(x86_64-unknown-linux-gnu aarch64-unknown-linux-gnu x86_64-apple-darwin aarch64-apple-darwin x86_64-pc-windows-msvc)
for target in "${targets[@]}"; do
  cargo tree --edges normal,build --target "$target" --prefix none --package evenkeel-cli | awk '{print $1 "@" substr($2, 2)}' | sort -u
done | LC_ALL=C sort | uniq -c | awk -v n="${#targets[@]}" '$1 == n {print $2}' | grep -v '^evenkeel' |
  while IFS=@ read -r name version; do
    locked=$(grep -c "^name = \"$name\"$" Cargo.lock)
    echo "$name@$version $name $locked"
  done | awk '{built[$2]++; line[NR] = $0}
    END {for (i = 1; i <= NR; i++) {split(line[i], f, " "); print (built[f[2]] < f[3] ? f[1] : f[2])}}' | LC_ALL=C sort -u \
  > crates/evenkeel-cli/src/commands/quickstart/crates.txt
