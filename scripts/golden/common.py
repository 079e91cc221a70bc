"""What the golden scripts share: the `--out` argument and the way a file is written.

A golden file is a safetensors file with one metadata key, `about`: a JSON object (keys sorted) that
holds the settings the numbers were made with. One key, because the order of several is not fixed by the
writer; the tensors themselves are sorted by it. The same script on the same machine with the same package
versions therefore writes the same bytes.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
SIZE_LIMIT = 400_000  # bytes; golden files live in the repository, so they stay small


def argument_parser(description):
    """A parser with the one argument every script takes."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=GOLDEN, help="directory the golden files go to")
    return parser


def out_directory(description):
    """Parse the command line and return the directory to write to."""
    return made(argument_parser(description).parse_args().out)


def made(directory):
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def write(path, tensors, about):
    """Write `tensors` (name -> array) to `path` with `about` as the only metadata."""
    arrays = {name: np.ascontiguousarray(value) for name, value in sorted(tensors.items())}
    for name, value in arrays.items():
        assert value.dtype in (np.float32, np.float64, np.int64, np.int32, np.int16), (name, value.dtype)
        assert value.ndim >= 1, f"{name}: scalars are written with shape [1]"
        assert value.dtype.kind != "f" or np.isfinite(value).all(), f"{name} is not finite"
    save_file(arrays, path, metadata={"about": json.dumps(about, sort_keys=True)})
    path.chmod(0o644)  # the writer leaves it readable by its owner only
    size = path.stat().st_size
    assert size < SIZE_LIMIT, f"{path.name} is {size} bytes"
    print(f"{path.name}: {len(arrays)} tensors, {size} bytes")
