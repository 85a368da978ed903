"""The logit lens: what a model would predict if it ended at some block."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from torch import Tensor, nn

from distilllens.head import Head
from distilllens.lens.anatomy import locate
from distilllens.lens.kind import WHY_NOT_TRAINED, Kind, check_kind, kind_of
from distilllens.lens.probe import input_name, undisturbed, unwrap
from distilllens.lens.readout import read_out
from distilllens.lens.stand_in import (
    logits_around_backbone,
    logits_around_blocks,
    normed_around_blocks,
)
from distilllens.lens.streams import same_block_arguments, stacked_error
from distilllens.lens.structure import worst
from distilllens.lens.translators import Translators

_HALF = (torch.bfloat16, torch.float16)


class LogitLens:
    """The model's own read-out (final norm and head), applied at any depth.

    ``lens.logits(h)`` equals the logits of the model's own forward with every block replaced by
    ``return h``; of an encoder-decoder, with every block of the decoder. One tiny forward finds
    the blocks, the final norm and the head. The constructor then verifies that equality at every
    depth, or raises. The model is left unchanged.

    ``mode`` is how logits are computed:
        - "closed": final norm -> head -> scale and soft cap, on ``[..., D]``; for training.
        - "head": the model's own forward around a backbone that returns the normed state.
        - "stub": the model's own forward around blocks that return the state.

    ``kind`` is what is predicted: "causal", "bidirectional", "encoder-decoder" or "images".

    Build it after wrapping the model with PEFT, in the dtype and with the adapters it is used with.

    Raises:
        ValueError: the model cannot be read exactly; the message names its class and the reason.

    Source: the logit lens, nostalgebraist 2020; arXiv 2602.13567.
    """

    # Of a tuned lens: what the stream passes through before norm and head.
    translators: Translators | None = None

    def __init__(self, model: nn.Module):
        name = type(model).__name__
        try:
            self.model = unwrap(model)
            name = type(self.model).__name__
            self._examine()
        except Exception as error:
            text = str(error)
            if type(error) is not ValueError:
                text = f"the probe failed: {type(error).__name__}: {text}"
            raise ValueError(f"no exact logit lens for {name}: {text}") from error
        self._trainable: str | None = None

    def _examine(self):
        model = self.model
        check_kind(model)
        self.anatomy, probe = locate(model)
        self._filler = int(probe.ids[-1, -1])
        with undisturbed(model):
            self._check_last_block_decides(probe)
            self._readout, self._reason = read_out(model, self.anatomy, probe)
            self._direct = self._backbone_is_enough(probe)
            self.mode = self._prove(probe)

    def _check_last_block_decides(self, probe):
        ids = torch.full_like(probe.ids, self._filler)
        last = probe.states[-1]
        jammed = logits_around_blocks(self.model, self.anatomy, last, ids, noise=True)
        error = worst(jammed, probe.logits)
        if not error <= _tolerance(probe.logits):
            raise ValueError(
                f"its logits depend on more than the output of its last block (they change by "
                f"{error:.1e} of the largest when everything else is replaced by noise)"
            )

    def _backbone_is_enough(self, probe) -> bool:
        """Whether the backbone on its own passes its blocks the same tensors as the model does."""
        if self.anatomy.backbone is None:
            return False
        return same_block_arguments(self.model, self.anatomy, probe)

    def _prove(self, probe) -> str:
        """The cheapest mode that equals the model's own stubbed forward at every depth."""
        if any(hidden.shape != probe.states[-1].shape for hidden in probe.states):
            raise ValueError("its blocks return streams of different shapes")
        modes = ["closed", "head", "stub"]
        if self._readout is None:
            modes = ["stub"]
        elif self._readout.head is None:
            modes.remove("closed")
        samples = self._samples(probe)
        for mode in modes:
            error = max(self._error(mode, *sample) for sample in samples)
            if error <= _tolerance(probe.logits):
                return mode
            if mode == "closed":
                self._reason = f"norm and head alone miss its logits by {error:.1e} of the largest"
        raise ValueError(f"its own forward around stand-ins differs from its logits by {error:.1e}")

    def _samples(self, probe):
        """Streams and ids of the proof: the last depth whole; of the others two tokens, stacked.

        A head costs the reading of its whole weight, however few its rows are.
        """
        *inner, last = probe.states
        if not inner or self.anatomy.axes() != (0, 1, 0) or last.ndim != 3:
            return [(hidden, probe.ids) for hidden in probe.states]
        few = torch.cat([hidden[:1, :2] for hidden in inner])
        return [(last, probe.ids), (few, probe.ids[:1, :2].expand(len(few), -1))]

    def _error(self, mode, hidden, ids) -> float:
        truth = logits_around_blocks(self.model, self.anatomy, hidden, ids)
        try:
            found = self._logits(mode, hidden)
        except Exception:  # what cannot run on its own is not a valid read-out
            if mode == "stub":
                raise
            return float("inf")
        if found.shape != truth.shape:
            return float("inf")
        # Each row of a stack is another depth, with logits of another size.
        error = max(map(worst, found, truth))
        # The tolerance would hide a scale that is off by 1e-3; such a scale changes most entries.
        if error < 1 and truth.dtype in _HALF and (found != truth).float().mean() > 0.1:
            return float("inf")
        return error

    @cached_property
    def kind(self) -> Kind:
        """What the logits predict, and where (``kind_of``)."""
        return kind_of(self.model)

    @property
    def reads_rows(self) -> bool:
        """Whether ``logits`` takes chosen rows of ``normalize``'s result, of any position."""
        return self.mode != "stub" and not self._is_of_images

    @property
    def _is_of_images(self):
        return input_name(self.model) == "pixel_values"

    def __repr__(self):
        return f"LogitLens({self._name}, num_layers={self.num_layers}, mode={self.mode!r})"

    @property
    def num_layers(self) -> int:
        """L, the number of blocks; depths are 0 (embeddings) to L."""
        return self.anatomy.num_layers

    @property
    def backbone(self) -> nn.Module | None:
        """The module that holds the blocks and the final norm."""
        return self.anatomy.backbone

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The L blocks, in order."""
        return self.anatomy.blocks

    @property
    def head(self) -> Head:
        """The head on the live parameters; read it anew each time, because sharding swaps them.

        Raises:
            ValueError: the mode is not "closed", or the head is not a plain linear layer (such as
                a head with LoRA).
        """
        self.require_closed("a head")
        module = _active(self.model.get_output_embeddings())
        kind = type(module)
        if not isinstance(module, nn.Linear) or kind.forward is not nn.Linear.forward:
            raise ValueError(
                f"{self._name}'s output embedding is a {kind.__module__}.{kind.__qualname__}, not "
                f"a plain nn.Linear: its weight alone does not give the logits (is it adapted?)"
            )
        size, before, after = self._readout.vocab_size, self._readout.before, self._readout.after
        if module.bias is not None and before.factor != 1.0:
            raise ValueError(f"{self._name} scales its states before a head with a bias")
        whole = size == module.weight.shape[0]
        weight = module.weight if whole else module.weight[:size]
        bias = module.bias if whole or module.bias is None else module.bias[:size]
        return Head(weight, bias, before.factor * after.factor, self._readout.softcap)

    def logits(self, hidden: Tensor, normalize: bool = True) -> Tensor:
        """The logits ``[..., V]`` of a stream ``[..., D]`` (for a normed state: normalize=False).

        In mode "stub", and for images (``[B, T, D]`` -> ``[B, C]``), the stream must have the shape
        returned by ``capture``.
        """
        if not normalize:
            return self._project(self.mode, hidden)
        return self._logits(self.mode, hidden)

    def tuned(self, translators: Translators | None) -> LogitLens:
        """This lens, reading inner depths through translators (None: as they are).

        ``logits`` and ``normalize`` take what ``translate`` returns; ``read_states``,
        ``trajectory``, ``divergence_by_depth`` and ``inspect_models`` translate by themselves.

        Raises:
            ValueError: translators of another width, or of depths that are not inner ones.
        """
        if translators is not None:
            width, last = self.anatomy.stream_shape[-1], translators.depths[-1]
            if translators.width != width or last >= self.num_layers:
                raise ValueError(
                    f"translators of width {translators.width} up to depth {last} do not fit "
                    f"{self._name}, whose stream has width {width} and inner depths 0 to "
                    f"{self.num_layers - 1}"
                )
        found = copy.copy(self)
        found.translators = translators
        return found

    def translate(self, depth: int, hidden: Tensor) -> Tensor:
        """The stream ``[..., D]`` at a depth through the translators, if this lens has any."""
        return hidden if self.translators is None else self.translators(depth, hidden)

    def normalize(self, hidden: Tensor) -> Tensor:
        """Turn the stream ``[..., D]`` into what the backbone returns, the input of the head."""
        return self._normalize(self.mode, hidden)

    def head_ready(self, normed: Tensor) -> Tensor:
        """The backbone's output in the dtype in which the model passes it to its head."""
        self.require_closed("states for training")
        return self._readout.head.cast(normed)

    def check_trainable(self) -> None:
        """Verify, once, that one backbone forward reads all depths as the model does.

        Raises:
            ValueError: this model can be inspected but not trained through the lens, and why.
        """
        if self._trainable is None:
            self._trainable = self._why_not_trainable()
        if self._trainable:
            raise ValueError(f"{self._name} cannot be trained through the lens: {self._trainable}")

    def _why_not_trainable(self) -> str:
        try:
            mode = "" if self.mode == "closed" else self._not_closed("a head")
            if reasons := list(filter(None, [mode, WHY_NOT_TRAINED.get(self.kind)])):
                return "; ".join(reasons)
            head = self.head
            if not self.anatomy.batch_first or not self._direct:
                return "its blocks do not pass on a [B, T, D] stream that its backbone can compute"
            error = stacked_error(self, head)
        except Exception as error:
            return str(error)
        if error > _tolerance(head.weight):
            return (
                f"its final norm, run once over all depths, changes its logits by {error:.1e} "
                f"of the largest"
            )
        return ""

    @property
    def _name(self):
        return type(self.model).__name__

    def require_closed(self, what: str) -> None:
        """Raise unless the mode is "closed"; ``what`` names the requested thing in the message.

        Raises:
            ValueError: the mode is not "closed", and why.
        """
        if self.mode != "closed":
            raise ValueError(self._not_closed(what))

    def _not_closed(self, what):
        return (
            f"{self._name} gives {what} only in mode 'closed', and its mode is '{self.mode}': "
            f"{self._reason}"
        )

    def _logits(self, mode, hidden):
        if mode != "stub":
            return self._project(mode, self._normalize(mode, hidden))
        return self._framed(hidden, logits_around_blocks)

    def _normalize(self, mode, hidden):
        if mode != "stub":
            return self._readout.normalize(hidden)
        if not self._direct:
            raise ValueError(f"{self._name} has no backbone that can norm a state on its own")
        return self._framed(hidden, normed_around_blocks)

    def _project(self, mode, normed):
        if mode == "closed":
            return self._readout.project(normed)
        if self.backbone is None:
            raise ValueError(f"{self._name} has no backbone to replace by a stand-in")
        whole = normed.ndim == 3
        self._check_shape(normed, whole or not self._is_of_images)
        rows = normed if whole else normed.reshape(1, -1, normed.shape[-1])
        ids = self._ids(rows.shape[:2], rows.device)
        logits = logits_around_backbone(self.model, self.anatomy, rows, ids)
        return logits if whole else logits.reshape(*normed.shape[:-1], logits.shape[-1])

    def _framed(self, hidden, forward):
        """Run a stubbed forward on a stream in the model's shape, or on rows ``[..., D]``."""
        batch, token, extra = self.anatomy.axes()
        whole = hidden.ndim == len(self.anatomy.stream_shape)
        self._check_shape(hidden, whole or (self.anatomy.batch_first and not self._is_of_images))
        stream = hidden if whole else hidden.reshape(1, -1, hidden.shape[-1])
        shape = (stream.shape[batch], stream.shape[token] - extra)
        out = forward(self.model, self.anatomy, stream, self._ids(shape, stream.device))
        return out if whole else out.reshape(*hidden.shape[:-1], out.shape[-1])

    def _check_shape(self, hidden, fits):
        if not fits:
            raise ValueError(
                f"{self._name}'s stream has {len(self.anatomy.stream_shape)} axes, got shape "
                f"{list(hidden.shape)}: pass it as returned by capture"
            )

    def _ids(self, shape, device):
        return torch.full(tuple(shape), self._filler, device=device)


def _tolerance(tensor) -> float:
    """Relative to the largest logit: 1e-5, or one rounding step in half precision."""
    return torch.finfo(tensor.dtype).eps if tensor.dtype in _HALF else 1e-5


def _active(module):
    """The active module inside a PEFT ``ModulesToSaveWrapper``; any other module unchanged."""
    saved = getattr(module, "modules_to_save", None)
    if not isinstance(saved, nn.ModuleDict) or not hasattr(module, "original_module"):
        return module
    names = getattr(module, "active_adapters", None) or [getattr(module, "active_adapter", None)]
    chosen = [name for name in names if name in saved]
    if getattr(module, "disable_adapters", False) or not chosen:
        return module.original_module
    return saved[chosen[0]]
