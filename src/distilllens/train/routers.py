"""The loss that balances the routers of a mixture of experts, as TRL adds it."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def router_logits(lens, wanted: bool):
    """``(inputs that ask the backbone of a lens for router logits, a list that gets them)``."""
    if not wanted:
        yield {}, []
        return
    found = []

    def keep(module, args, output):
        found.extend(output.router_logits)

    handle = lens.backbone.register_forward_hook(keep)
    try:
        yield {"output_router_logits": True}, found
    finally:
        handle.remove()


def router_loss(model, logits: list[Tensor], inputs: dict) -> Tensor:
    """The load-balancing loss of one batch, a scalar with its gradient: 1 if experts are balanced.

    Args:
        logits: of each router, ``[tokens, experts]``.
        inputs: of the batch; padding is left out by their ``attention_mask``.

    Source: arXiv 2101.03961, equations 4 to 6; all families of transformers take Mixtral's.
    """
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    config = model.config.get_text_config()
    shape = (config.num_experts, config.num_experts_per_tok)
    loss = load_balancing_loss_func(tuple(logits), *shape, inputs.get("attention_mask"))
    return torch.as_tensor(loss)
