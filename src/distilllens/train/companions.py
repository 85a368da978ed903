"""Modules that are trained along with the student and are no part of it, by name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback
from trl import SFTTrainer

from distilllens.errors import one_line
from distilllens.train.finite import check_weights
from distilllens.train.sharding import is_sharded


class CompanionTrainer(SFTTrainer):
    """An ``SFTTrainer`` that trains further modules beside its model.

    ``add_companion`` registers one; from then on it lives as the student does. Its parameters form
    a group of the optimizer, at the student's learning rate and without weight decay. Their
    gradients are averaged over processes, clipped by one norm with the student's, and cleared at
    the next step. ``companions/NAME.safetensors`` lies in the folder of every saved model, in
    checkpoints too, and is read back on a resume and with the best checkpoint. The module is called
    like any other; DDP need not know it, so it may run inside the student's forward or outside.

    Attributes:
        companions: name -> module; empty for a trainer without any.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.companions = nn.ModuleDict()
        self.add_callback(_ClearedGradients(self.companions))

    def add_companion(self, name: str, module: nn.Module) -> nn.Module:
        """Register a module, moved to the student's device; call it before ``train()``.

        Parameters that do not require a gradient are saved and loaded, and not trained.

        Raises:
            ValueError: the student's weights are sharded: the optimizer of FSDP or DeepSpeed
                manages the parameters of the student alone.
        """
        if is_sharded(self.accelerator):
            raise ValueError(
                f"{name} are trained beside the student, which is not supported under FSDP or "
                "DeepSpeed; train with DDP or on one process"
            )
        self.companions[name] = module.to(self.accelerator.device)
        return module

    def create_optimizer(self, model=None):
        """The optimizer of the student, with a group for the companions."""
        optimizer = super().create_optimizer(model)
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        new = [p for p in _trained(self.companions) if id(p) not in known]
        if new:
            optimizer.add_param_group({"params": new, "weight_decay": 0.0})
        return optimizer

    def training_step(self, model, inputs, num_items_in_batch=None):
        """A micro-batch; after the last one of a step, gradients are averaged as by DDP."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            for parameter in _trained(self.companions):
                # One that a step did not use is at 0, not absent, on any number of processes.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                if self.accelerator.num_processes > 1:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
        return loss

    def _clip_grad_norm(self, model):
        return super()._clip_grad_norm(self._with_companions(model))

    def _get_grad_norm(self, model, grad_norm=None):
        return super()._get_grad_norm(self._with_companions(model), grad_norm)

    def _with_companions(self, model):
        return nn.ModuleList([model, self.companions]) if self.companions else model

    def save_model(self, output_dir=None, _internal_call=False):
        """Save the model, and each companion in a file of its own.

        Raises:
            ValueError: weights of a companion that are not finite.
        """
        for name, module in self.companions.items():
            check_weights(name, module)
        super().save_model(output_dir, _internal_call)
        if self.args.should_save:
            for name, module in self.companions.items():
                tensors = {k: v.contiguous() for k, v in module.state_dict().items()}
                file = _file(output_dir or self.args.output_dir, name)
                file.parent.mkdir(exist_ok=True)
                save_file(tensors, file)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self._load_companions(resume_from_checkpoint)

    def _load_best_model(self):
        super()._load_best_model()
        self._load_companions(self.state.best_model_checkpoint)

    def _load_companions(self, folder):
        for name, module in self.companions.items():
            file = _file(folder, name)
            try:
                module.load_state_dict(load_file(file))
            except Exception as error:  # a missing file, and tensors of other names or shapes
                raise ValueError(
                    f"{file} does not hold the {name} of this run: {one_line(error)}"
                ) from error


class _ClearedGradients(TrainerCallback):
    """Clears gradients where transformers clears those of the student alone."""

    def __init__(self, companions):
        self._companions = companions

    def on_step_begin(self, args, state, control, **kwargs):
        self._companions.zero_grad()


def _trained(companions):
    return [parameter for parameter in companions.parameters() if parameter.requires_grad]


def _file(folder, name):
    # vLLM takes every safetensors file that lies beside a model for the model's weights.
    return Path(folder) / "companions" / f"{name}.safetensors"
