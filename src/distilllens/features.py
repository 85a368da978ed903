"""The feature loss: hidden states of student and teacher at pairs of depths, before any norm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distilllens.layer_map import LayerMap


@dataclass(frozen=True, eq=False)
class Features:
    """The states of one batch that the feature loss compares, at its N targets.

    Args:
        student: depth -> raw states ``[N, Ds]``.
        teacher: depth -> raw states ``[N, Dt]``; constants.
        project: (rows ``[N, Ds]``, their depth in the student) -> ``[N, Dt]``.
    """

    student: Mapping[int, Tensor]
    teacher: Mapping[int, Tensor]
    project: Callable[[Tensor, int], Tensor]

    def distances(self, pairs: LayerMap, name: str) -> Tensor:
        """``[P, N]``, one distance for each pair and target, >= 0; ``name`` is of FEATURE_LOSSES.

        "mse" is the mean over the Dt dimensions of the squared difference (TinyBERT, FitNets);
        "cosine" is 1 - cosine similarity, at most 2 (DistilBERT).
        """
        return torch.stack(
            [
                FEATURE_LOSSES[name](
                    *_both(self.project(self.student[s], s), self.teacher[t].detach())
                )
                for s, t in pairs
            ]
        )


def _both(ours, theirs):
    dtype = torch.promote_types(ours.dtype, torch.float32)
    return ours.to(dtype), theirs.to(ours.device, dtype)


FEATURE_LOSSES = {
    "mse": lambda ours, theirs: (ours - theirs).square().mean(-1),
    "cosine": lambda ours, theirs: 1 - F.cosine_similarity(ours, theirs, dim=-1),
}
