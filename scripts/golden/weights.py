"""Golden files: the weight files that PyTorch writes, and what is in them.

Writes to weights/ below the golden folder:

    state.bin               an OrderedDict with _metadata: every dtype, views of all kinds, a Parameter, a scalar
    nested.bin              {"state_dict": {...}, "epoch": 3, ...}: tensors one level down, beside what is no tensor
    state.safetensors       what state.bin holds, contiguous, in the same dtypes
    state_f32.safetensors   the same as float32
"""

from collections import OrderedDict

import torch
from safetensors.torch import save_file

from common import made, out_directory

METADATA = {"format": "pt"}


def state():
    numbers = torch.Generator().manual_seed(1)
    base = torch.randn(6, 4, generator=numbers)
    tensors = OrderedDict(
        f32=torch.randn(3, 4, generator=numbers),
        f16=torch.tensor([0.0, -0.0, 1.0, -2.5, 65504.0, 6e-8, 6.1e-5, -6.0e-5], dtype=torch.float16),
        bf16=torch.tensor([[1.0, -3.0], [3e38, 1e-40]], dtype=torch.bfloat16),
        f64=torch.tensor([0.1, -1e30, 5e-324], dtype=torch.float64),
        i64=torch.tensor([[1, -(2**40)], [2**62 + 1, 0]]),
        i32=torch.tensor([1, -(2**31)], dtype=torch.int32),
        i16=torch.tensor([300, -300], dtype=torch.int16),
        i8=torch.tensor([127, -128], dtype=torch.int8),
        u8=torch.tensor([0, 255], dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        scalar=torch.tensor(0.25),
        empty=torch.empty(0, 3),
        transposed=torch.randn(2, 5, generator=numbers).t(),
        permuted=torch.randn(2, 3, 4, generator=numbers).permute(2, 0, 1),
        expanded=torch.tensor([[1.0], [2.0]]).expand(2, 3),
        head=base[:2],
        tail=base[3:, 1::2],
        parameter=torch.nn.Parameter(torch.randn(2, 2, generator=numbers)),
    )
    tensors._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    return tensors


def main():
    directory = made(out_directory(__doc__) / "weights")
    tensors = state()
    torch.save(tensors, directory / "state.bin")
    outer = {"epoch": 3, "note": "best", "optimizer": {"lr": 0.1, "params": [0, 1]}}
    inner = {"a.weight": tensors["f32"], "a.bias": tensors["bf16"]}
    torch.save({**outer, "state_dict": inner}, directory / "nested.bin")
    plain = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, directory / "state.safetensors", METADATA)
    save_file({name: t.float() for name, t in plain.items()}, directory / "state_f32.safetensors", METADATA)
    for path in sorted(directory.iterdir()):
        path.chmod(0o644)
        print(f"{path.name}: {path.stat().st_size} bytes")


main()
