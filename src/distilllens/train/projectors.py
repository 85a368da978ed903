"""The states of the feature loss: read beside the lens, projected to the teacher's width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distilllens.layer_map import LayerMap
from distilllens.lens import LogitLens
from distilllens.lens.streams import collected
from distilllens.targets import Targets
from distilllens.teacher import CachedTeacher, TeacherSource


class FeatureProjectors(nn.Module):
    """A learned affine map for each depth of the student, from its width to the teacher's.

    As the regressors of FitNets and the projections of TinyBERT; theirs begin at random, ours at a
    random map that keeps lengths (its rows or columns are orthonormal), with a bias of 0. Models
    of one width need none, as in PKD and DistilBERT: their states are compared as they are.

    Args:
        depths: of the student.
        seed: of the start, which is the same on every process; no generator is advanced.
    """

    def __init__(self, depths, student_width: int, teacher_width: int, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.maps = nn.ModuleDict()
        for depth in depths if student_width != teacher_width else ():
            linear = nn.utils.skip_init(nn.Linear, student_width, teacher_width)
            nn.init.orthogonal_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
            self.maps[str(depth)] = linear

    def forward(self, states: Tensor, depth: int) -> Tensor:
        """States ``[N, Ds]`` of a depth of the student as ``[N, Dt]``, in at least float32."""
        if not self.maps:
            return states
        with torch.autocast(states.device.type, enabled=False):
            return self.maps[str(depth)](states.float())


def width_of(source: LogitLens | TeacherSource) -> int:
    """The width of the residual stream of a student's lens, or of a teacher."""
    lens = source
    if not isinstance(source, LogitLens):
        if isinstance(source.source, CachedTeacher):
            return source.source.manifest.width
        lens = source.source.lens
    return lens.model.config.get_text_config().hidden_size


def depths_to_ask(
    teacher: TeacherSource, lens_pairs: LayerMap | None, raw_pairs: LayerMap | None
) -> tuple[int, ...]:
    """The depths to ask a teacher for: a cache must hand out raw states, a model is watched."""
    more = _depths(raw_pairs) if isinstance(teacher.source, CachedTeacher) else ()
    return tuple(dict.fromkeys((*_depths(lens_pairs), *more)))


def read_with_raw(teacher: TeacherSource, end_read, raw_pairs: LayerMap | None, targets: Targets):
    """States and head as ``end_read`` returns them, and depth -> raw rows ``[N, Dt]``.

    The raw rows of a cache are its states, which must be raw (``lens_norm: false``).
    """
    depths, source = _depths(raw_pairs), teacher.source
    if not depths:
        return *end_read(), {}
    if isinstance(source, CachedTeacher):
        states, head = end_read()
        return states, head, {depth: states[depth] for depth in depths}
    with collected(source.lens.anatomy, depths) as streams:
        states, head = end_read()
    device = targets.index.device  # of the student
    return states, head, {depth: targets.rows(streams[depth]).to(device) for depth in depths}


def _depths(pairs):
    return pairs.teacher_depths if pairs else ()
