"""The forward pass of a GPT in onnxruntime's int8 on the CPU, in every way that may be its fastest: a peer of `evenkeel bench
int8`.

Static modes are calibrated on random tokens and keep attention's own products in float32, as dynamic ones do: both in int8
were slower and less exact. Weights are signed, activations unsigned, the graph optimised by ORT_ENABLE_ALL. Quantised
models stay in target/bench-int8. Prints one JSON line for each mode, or with --serve answers lines on stdin;
`--self-check` compares the float graph with PyTorch's model and every mode with the float graph.
"""

import argparse
import logging
import pathlib
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from onnx_graph import ATTENTION, BATCH, Gpt
from serving import SHAPE, Modes, measure, serve, shape_parser, token_ids

ROOT = pathlib.Path(__file__).resolve().parents[2]
CALIBRATION_SEQUENCES = 4
CORRELATION, TOLERANCE = 0.99, 1e-3


class RandomTokens(CalibrationDataReader):
    def __init__(self, args):
        sizes = argparse.Namespace(**{**vars(args), "sequences": CALIBRATION_SEQUENCES})
        self.rows = iter(token_ids(sizes))

    def get_next(self):
        row = next(self.rows, None)
        return None if row is None else {"ids": row[None]}


def static(attention, form, per_channel=False, float_outputs=False):
    """Scales fixed by calibration, attention's own products left out. With `float_outputs` a product leaves float32, which its successor may round again."""
    extra = {"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]} if float_outputs else {}

    def make(args, source, out):
        attention = [f"blocks.{layer}.{product}" for layer in range(args.depth) for product in ["scores", "mixed"]]
        quantize_static(
            source, out, RandomTokens(args), quant_format=form, op_types_to_quantize=["Gemm", "MatMul", "Relu"],
            nodes_to_exclude=attention, per_channel=per_channel, activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, extra_options=extra,
        )  # fmt: skip

    return attention, make


def dynamic(attention, per_channel=False):
    """Scales of activations taken from each input."""

    def make(_, source, out):
        kinds = ["MatMul", "Attention"]
        quantize_dynamic(source, out, op_types_to_quantize=kinds, per_channel=per_channel, weight_type=QuantType.QInt8)

    return attention, make


# The form of attention, and how the model is made of the float one.
MODES = {
    "f32": ("whole", lambda _, source, out: pathlib.Path(source).rename(out)),
    "qdq": static("mha", QuantFormat.QDQ),
    "qdq-channel": static("mha", QuantFormat.QDQ, per_channel=True),
    "qdq-float-outputs": static("mha", QuantFormat.QDQ, float_outputs=True),
    "qdq-standard": static("standard", QuantFormat.QDQ),
    "qdq-unfused": static("plain", QuantFormat.QDQ),
    "qoperator": static("mha", QuantFormat.QOperator),
    "dynamic": dynamic("whole"),
    "dynamic-channel": dynamic("whole", per_channel=True),
    "dynamic-mha": dynamic("mha"),
}


def model_path(args, mode):
    """The model of that mode, made if it is not there."""
    sizes = "-".join(str(getattr(args, name)) for name in SHAPE)
    path = args.work / f"{sizes}-{mode}.onnx"
    if not path.exists():
        attention, make = MODES[mode]
        args.work.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=args.work) as folder:
            source, out = f"{folder}/float.onnx", f"{folder}/made.onnx"
            onnx.save(Gpt(args, attention).model(), source)
            make(args, source, out)
            pathlib.Path(out).rename(path)
    return path


def session(args, model):
    """Of a path or of a serialised model."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = args.threads, 1
    options.log_severity_level = 3
    options.add_free_dimension_override_by_name(BATCH, args.sequences)
    # Threads may spin during a forward pass, but not on into another program's turn.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def maker(args, mode, ids):
    """Makes the mode when it is first asked for."""

    def make():
        ready = session(args, str(model_path(args, mode)))
        return lambda: ready.run(None, {"ids": ids})[0]

    return make


def torch_logits(args, ids):
    """PyTorch's model with the weights of the graph: their names are the same, their sides of most matrices swapped."""
    import torch
    from torch_int8 import LastLogits

    torch.set_num_threads(args.threads)
    tensors = {}
    model = LastLogits(args.depth, args.width, args.heads, args.vocab, args.context).eval()
    for tensor in Gpt(args, "mha").model().graph.initializer:
        array = torch.tensor(numpy_helper.to_array(tensor))
        swapped = array.dim() == 2 and not tensor.name.startswith(("token", "position"))
        tensors[tensor.name] = array.T if swapped else array
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    with torch.inference_mode():
        return model(torch.from_numpy(ids)).numpy()


def check(args):
    """Exit code."""
    ids, bad = token_ids(args), 0
    wanted = torch_logits(args, ids)
    for attention in ATTENTION:
        ready = session(args, Gpt(args, attention).model().SerializeToString())
        off = np.abs(ready.run(None, {"ids": ids})[0] - wanted).max() / np.abs(wanted).max()
        bad += not off < TOLERANCE
        print(f"float, attention {attention}: off PyTorch by {off:.1e} of the largest logit")
    for mode in MODES:
        made = maker(args, mode, ids)()()
        correlation = np.corrcoef(made.ravel(), wanted.ravel())[0, 1]
        bad += not correlation > CORRELATION
        print(f"{mode}: correlation {correlation:.4f} with float")
    print(f"{bad} beyond {TOLERANCE:g} or below {CORRELATION}")
    return 1 if bad else 0


def main():
    parser = shape_parser(__doc__)
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "target/bench-int8", help="folder of quantised models")
    parser.add_argument("--self-check", action="store_true")
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # the quantiser's advice to optimise first, which the graph needs not
    if args.self_check:
        sys.exit(check(args))
    ids = token_ids(args)
    modes = Modes({mode: maker(args, mode, ids) for mode in MODES}, f"onnxruntime {ort.__version__}")
    serve(modes) if args.serve else measure(modes, args.modes or MODES, args.repeat)


if __name__ == "__main__":
    main()
