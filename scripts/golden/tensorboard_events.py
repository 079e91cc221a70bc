"""An event file written by tensorboard's own record writer and messages: the bytes that train/tensorboard.rs must write.

    python scripts/golden/tensorboard_events.py [--out DIR]

Needs tensorboard. The file is read back with EventAccumulator before it counts.
"""

import argparse
import math
import tempfile
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2
from tensorboard.summary.writer.record_writer import RecordWriter

NAME = "events.out.tfevents.1764000000.evenkeel"
WALL = 1764000000.25


def scalar(tag, value):
    return summary_pb2.Summary.Value(tag=tag, simple_value=value)


def texts(tag, lines):
    dim = tensor_shape_pb2.TensorShapeProto.Dim(size=len(lines))
    tensor = tensor_pb2.TensorProto(
        dtype=types_pb2.DT_STRING,
        tensor_shape=tensor_shape_pb2.TensorShapeProto(dim=[dim]),
        string_val=[line.encode() for line in lines],
    )
    plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
    return summary_pb2.Summary.Value(tag=tag, tensor=tensor, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin))


ALARMS = ["rms at embed is 3.5000, above 3", "rms at blocks.0.resid is not finite, above 3"]
STEPS = [
    (1, [scalar("train/loss", 5.545177), scalar("lr", 0.0), scalar("mem/peak", 123456789.0)]),
    (10, [scalar("kurtosis/blocks.03.resid", 1.25), scalar("moments/embed/u42", -3.0e-12)]),
    (300, [scalar("é", math.inf), texts("alarm", ALARMS)]),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[2] / "tests" / "golden")
    path = parser.parse_args().out / NAME
    events = [event_pb2.Event(wall_time=WALL, file_version="brain.Event:2")]
    for i, (step, values) in enumerate(STEPS, 1):
        summary = summary_pb2.Summary(value=values)
        events.append(event_pb2.Event(wall_time=WALL + i, step=step, summary=summary))
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        for event in events:
            writer.write(event.SerializeToString(deterministic=True))

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / NAME).write_bytes(path.read_bytes())
        read = EventAccumulator(folder)
        read.Reload()
        assert [(e.step, e.value) for e in read.Scalars("kurtosis/blocks.03.resid")] == [(10, 1.25)]
        assert [e.value for e in read.Scalars("é")] == [math.inf]
        assert [t.decode() for t in read.Tensors("alarm")[0].tensor_proto.string_val] == ALARMS
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
