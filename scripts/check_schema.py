"""Judges configurations by `evenkeel config schema`, with the jsonschema package: python scripts/check_schema.py BINARY

Needs jsonschema. The schema itself must be valid; what `config show` prints for every preset and optimiser, and the files
of experiments/, must be valid; the same with a misspelt key must not. Exits with 1 where that is not so.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

from jsonschema import Draft202012Validator

BINARY = sys.argv[1]


def evenkeel(*args):
    return subprocess.run([BINARY, *args], check=True, capture_output=True, text=True).stdout


schema = json.loads(evenkeel("config", "schema"))
Draft202012Validator.check_schema(schema)
validator = Draft202012Validator(schema)
presets = [p["name"] for p in json.loads(evenkeel("config", "list", "--json"))["presets"]]
optimizers = [way["properties"]["name"]["const"] for way in schema["properties"]["optim"]["oneOf"]]
wrong = []
files = {f: f.read_text() for f in sorted(Path(__file__).parents[1].glob("experiments/**/*.toml"))}
files = {name: text for name, text in files.items() if "[model]" in text}
for preset in presets:
    for optimizer in optimizers:
        files[f"{preset} {optimizer}"] = evenkeel("config", "show", preset, "--set", f"optim.name={optimizer}")
for name, text in files.items():
    config = tomllib.loads(text)
    wrong += [(name, e.message[:200]) for e in validator.iter_errors(config)]
    for table in config.values():
        for key in [k for k in table] if isinstance(table, dict) else []:
            value = table.pop(key)
            table[key + "x"] = value
            if validator.is_valid(config):
                wrong.append((name, f"{key}x is valid"))
            del table[key + "x"]
            table[key] = value
print(f"{len(files)} configurations, {len(wrong)} deviate")
for problem in wrong[:10]:
    print(" ", *problem)
sys.exit(1 if wrong else 0)
