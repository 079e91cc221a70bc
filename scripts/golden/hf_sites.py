"""Hidden states of any `transformers` model, taken with hooks.

    embed             what enters block 0
    blocks.{i}.resid  what leaves block i, before any final norm
    final_norm        what leaves the norm that is fed the last block's output, if there is one
    logits            the head's output, if there is one; of a classifier with one position [B, 1, classes]

All are [B, T, channels]. The blocks are the longest `nn.ModuleList`: that needs no name and holds for every decoder
and encoder with one stack.
"""

import torch
from torch import nn


def stack_of(model):
    """The model's blocks, in order."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise ValueError(f"{type(model).__name__} has no nn.ModuleList to take the blocks from")
    return max(lists, key=len)


def first(value):
    """A block or norm returns its hidden state alone or as the first of a tuple."""
    return value[0] if isinstance(value, tuple) else value


def record(model, **inputs):
    """Run `model` once; return the sites by name, and its output with `hidden_states`."""
    blocks = stack_of(model)
    inside = {module for block in blocks for module in block.modules()}
    norms = [m for m in model.modules() if "Norm" in type(m).__name__ and m not in inside]
    sites, normed, hooks = {}, [], []

    def enters(module, args, kwargs):
        sites["embed"] = (args[0] if args else kwargs["hidden_states"]).clone()

    def leaves(index):
        def hook(module, args, output):
            sites[f"blocks.{index}.resid"] = first(output).clone()

        return hook

    def norm(module, args, output):
        normed.append((args[0].clone(), first(output).clone()))

    hooks.append(blocks[0].register_forward_pre_hook(enters, with_kwargs=True))
    hooks += [block.register_forward_hook(leaves(i)) for i, block in enumerate(blocks)]
    hooks += [module.register_forward_hook(norm) for module in norms]
    try:
        with torch.no_grad():
            output = model(**inputs, output_hidden_states=True, return_dict=True)
    finally:
        for hook in hooks:
            hook.remove()

    last = sites.get(f"blocks.{len(blocks) - 1}.resid")
    for entering, leaving in normed:
        if last is not None and torch.equal(entering, last):
            sites["final_norm"] = leaving
    if getattr(output, "logits", None) is not None:
        sites["logits"] = positions(output.logits)
    return sites, output


def positions(logits):
    """Logits with an axis of positions: a classifier's [B, classes] have one."""
    return logits if logits.ndim == 3 else logits[:, None]
