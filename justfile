# `just --list` shows these; `.ci/run` is what must pass before a change lands.

# Build the binary
build:
    cargo build --release

# The README's test command
test:
    cargo test --release --workspace

# Everything that CI runs
ci:
    bash .ci/run

# Format and lint
lint:
    cargo fmt --all
    cargo clippy --release --workspace --all-targets -- -D warnings

# The headline on this machine
quickstart *ARGS:
    cargo run --release -- quickstart {{ARGS}}

# Make the golden files again (needs Python, see scripts/golden/README.md)
golden python=".venv-golden/bin/python":
    for script in model_steps optimizers quantisers w8a8_model formats ranges repairs metrics weights; do {{python}} scripts/golden/$script.py; done

# Write the list of crates behind the quickstart's corpus again, after a change of dependencies
quickstart-crates:
    bash scripts/quickstart_crates.sh
