"""The GPT of `torch_step.py` as an ONNX graph, the logits of the last position only, written op by op.

Projections are `Gemm` over (B·T, D), which onnxruntime quantises to one op with its bias. Attention is written in the
fused forms that onnxruntime's optimisers make of composed graphs, so that it is fused whether or not they would find it.
Sums and norms stay apart: on the CPU `SkipLayerNormalization` is slower than the two. Names of weights are PyTorch's.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR, CONTRIB = 23, 10, "com.microsoft"
BATCH = "batch"  # the dimension that a session fixes
# plain: products and a softmax. mha: one op between the projections. whole: one op that holds q, k and v's projection.
# standard: ONNX's own op.
ATTENTION = ["plain", "mha", "whole", "standard"]


class Graph:
    """Nodes and constants, added in order; each method returns the name of the tensor that it made."""

    def __init__(self, seed):
        self.nodes, self.constants, self.told, self.rng = [], [], [], np.random.default_rng(seed)

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, name, *shape):
        return self.constant(name, self.rng.standard_normal(shape, dtype=np.float32) * np.float32(0.02))

    def shape(self, name, *sizes):
        return self.constant(name, np.array(sizes, np.int64))

    def op(self, kind, name, *inputs, outputs=None, **attributes):
        self.nodes.append(helper.make_node(kind, list(inputs), outputs or [name], name, **attributes))
        return name

    def tell(self, name, *sizes):
        """The shape of what an op outside ONNX's standard made: quantisation tools cannot infer it."""
        self.told.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
        return name

    def norm(self, name, x, width):
        gain = self.constant(f"{name}.weight", np.ones(width, np.float32))
        bias = self.constant(f"{name}.bias", np.zeros(width, np.float32))
        return self.op("LayerNormalization", name, x, gain, bias, axis=-1, epsilon=1e-5)

    def linear(self, name, x, d_in, d_out):
        """(N, d_in) to (N, d_out)."""
        weight, bias = self.weight(f"{name}.weight", d_in, d_out), self.weight(f"{name}.bias", d_out)
        return self.op("Gemm", name, x, weight, bias)


class Gpt:
    def __init__(self, args, attention, seed=0):
        self.d, self.t, self.heads = args.width, args.context, args.heads
        self.depth, self.vocab, self.attention = args.depth, args.vocab, attention
        self.g = Graph(seed)

    def batched(self, name, x_nd):
        return self.g.op("Reshape", name, x_nd, "shape.btd")

    def flat(self, name, x_btd):
        return self.g.op("Reshape", name, x_btd, "shape.nd")

    def attend(self, at, x_nd):
        """(N, D) of the norm to (N, D) of the heads' contexts."""
        g = self.g
        if self.attention != "plain":
            g.tell(f"{at}.heads", BATCH, self.t, self.d)
        if self.attention == "whole":
            inputs = self.batched(f"{at}.in3", x_nd), g.weight(f"{at}.qkv.weight", self.d, 3 * self.d)
            bias = g.weight(f"{at}.qkv.bias", 3 * self.d)
            one_op = {"domain": CONTRIB, "num_heads": self.heads, "unidirectional": 1}
            return self.flat(f"{at}.context", g.op("Attention", f"{at}.heads", *inputs, bias, **one_op))
        joint = self.split(at, g.linear(f"{at}.qkv", x_nd, self.d, 3 * self.d))
        return self.flat(f"{at}.context", self.mix(at, *joint))

    def split(self, at, qkv):
        joint = self.g.op("Reshape", f"{at}.qkv3", qkv, "shape.bt3d")
        parts = [f"{at}.{part}" for part in "qkv"]
        self.g.op("Split", f"{at}.split", joint, outputs=parts, axis=-1, num_outputs=3)
        return parts

    def mix(self, at, q, k, v):
        g = self.g
        if self.attention == "mha":
            return g.op("MultiHeadAttention", f"{at}.heads", q, k, v, domain=CONTRIB, num_heads=self.heads, unidirectional=1)
        if self.attention == "standard":
            return g.op("Attention", f"{at}.heads", q, k, v, q_num_heads=self.heads, kv_num_heads=self.heads, is_causal=1)
        # The scale goes on the smaller of the tensors.
        order = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
        apart = {part: g.op("Reshape", f"{at}.{part}4", x, "shape.bthd") for part, x in zip("qkv", [q, k, v])}
        q, k, v = (g.op("Transpose", f"{at}.{part}t", x, perm=order[part]) for part, x in apart.items())
        scores = g.op("MatMul", f"{at}.scores", g.op("Mul", f"{at}.scaled", q, "scale"), k)
        probs = g.op("Softmax", f"{at}.probs", g.op("Add", f"{at}.masked", scores, "mask"), axis=-1)
        return g.op("Transpose", f"{at}.heads", g.op("MatMul", f"{at}.mixed", probs, v), perm=[0, 2, 1, 3])

    def block(self, at, x_nd):
        g, d = self.g, self.d
        context = self.attend(at, g.norm(f"{at}.attn_norm", x_nd, d))
        x_nd = g.op("Add", f"{at}.attn_sum", x_nd, g.linear(f"{at}.out", context, d, d))
        hidden = g.op("Relu", f"{at}.hidden", g.linear(f"{at}.up", g.norm(f"{at}.mlp_norm", x_nd, d), d, 4 * d))
        return g.op("Add", f"{at}.mlp_sum", x_nd, g.linear(f"{at}.down", hidden, 4 * d, d))

    def model(self):
        """Input `ids` (B, T), output `logits` (B, V)."""
        g, head_dim = self.g, self.d // self.heads
        g.shape("shape.nd", -1, self.d)
        g.shape("shape.btd", -1, self.t, self.d)
        if self.attention != "whole":
            g.shape("shape.bt3d", -1, self.t, 3 * self.d)
        if self.attention == "plain":
            g.shape("shape.bthd", -1, self.t, self.heads, head_dim)
            g.constant("scale", np.float32(head_dim**-0.5))
            g.constant("mask", np.triu(np.full((self.t, self.t), np.finfo(np.float32).min), 1))
        token = g.op("Gather", "token", g.weight("token.weight", self.vocab, self.d), "ids")
        x_btd = g.op("Add", "embed", token, g.weight("position.weight", self.t, self.d))
        x_nd = self.flat("embed2", x_btd)
        for layer in range(self.depth):
            x_nd = self.block(f"blocks.{layer}", x_nd)
        g.constant("last", np.int64(self.t - 1))
        last_bd = g.op("Gather", "stream_last", self.batched("stream", x_nd), "last", axis=1)
        g.op("MatMul", "logits", g.norm("norm", last_bd, self.d), g.weight("head.weight", self.d, self.vocab))
        ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [BATCH, self.t])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [BATCH, self.vocab])
        graph = helper.make_graph(g.nodes, "gpt", [ids], [logits], g.constants, value_info=g.told)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR)
