"""The forward pass of a GPT in PyTorch on the CPU, in every mode that may be its fastest: a peer of `evenkeel bench int8`.

The model is that of `torch_step.py` with the logits of the last position only. int8 is torch.ao's dynamic quantisation of
all linear layers. Compiled modes have their weights frozen, so that these are packed once, as ours are. Prints one JSON
line for each mode, or with --serve answers lines on stdin.
"""

import contextlib
import copy
import warnings

import torch
import torch._inductor.config
import torch.nn as nn

from serving import Modes, measure, serve, shape_parser, token_ids
from torch_step import Gpt

PRECISIONS = ["f32", "bf16-autocast", "bf16"]
ENGINES = ["x86", "onednn"]
MODES = [*PRECISIONS, *(f"{name}-compile" for name in PRECISIONS), *(f"int8-{engine}" for engine in ENGINES)]


class LastLogits(Gpt):
    """(B, T) ids to (B, V)."""

    def forward(self, ids_bt):
        x_btd = self.token(ids_bt) + self.position.weight[: ids_bt.shape[1]]
        for block in self.blocks:
            x_btd = block(x_btd)
        return self.head(self.norm(x_btd[:, -1]))


def build(args):
    torch.manual_seed(0)
    model = LastLogits(args.depth, args.width, args.heads, args.vocab, args.context).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0, 0.02)
    return model


def quantised(model, engine):
    torch.backends.quantized.engine = engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao names its successor
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


def forward(model, mode):
    """The function of the ids that a mode is."""
    precision, _, rest = mode.partition("-")
    if precision == "int8":
        return quantised(model, rest)
    autocast = rest.startswith("autocast")
    if precision == "bf16" and not autocast:
        model = copy.deepcopy(model).bfloat16()
    call = torch.compile(model) if mode.endswith("compile") else model

    def run(ids_bt):
        with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
            return call(ids_bt)

    return run


def maker(model, mode, ids_bt):
    """Makes the mode when it is first asked for."""

    def make():
        call = forward(model, mode)

        def run():
            with torch.inference_mode():
                return call(ids_bt)

        return run

    return make


def main():
    args = shape_parser(__doc__).parse_args()
    torch.set_num_threads(args.threads)
    torch._inductor.config.freezing = True
    model, ids_bt = build(args), torch.from_numpy(token_ids(args))
    modes = Modes({mode: maker(model, mode, ids_bt) for mode in MODES}, f"torch {torch.__version__}")
    serve(modes) if args.serve else measure(modes, args.modes or MODES, args.repeat)


if __name__ == "__main__":
    main()
