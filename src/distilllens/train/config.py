"""Every field of training, checked when it is set.

Only train/, workflows/ and cli/ read the dataclass; the floors below get plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trl import ModelConfig as ModelConfig  # the student of a recipe, and how to load it
from trl import SFTConfig

from distilllens.layer_map import LayerMap
from distilllens.objective import Objective
from distilllens.sampling import check_fraction
from distilllens.train.config_checks import (
    check_bounds,
    check_device,
    check_divergences,
    check_precision,
    check_save_dtype,
    check_scope,
    check_texts,
    check_types,
    settle_numbers,
)
from distilllens.train.config_defaults import (
    follow_the_answers,
    follow_the_machine,
    follow_the_metric,
    load_models_whole,
)
from distilllens.train.lens_checks import (
    check_forms,
    check_lens_layers,
    settle_cross_tokenizer,
    settled_pair_weights,
)
from distilllens.train.on_policy_checks import check_on_policy
from distilllens.train.schedule import lens_share
from distilllens.train.teacher_fields import TeacherFields, settle_teachers
from distilllens.train.terms import objective_of

# Scores of answers.
HIGHER_IS_BETTER = ("rouge_l", "exact_match")


@dataclass
class DistillLensConfig(TeacherFields, SFTConfig):
    """``trl.SFTConfig`` with the fields of distillation and of the logit lens.

    Defaults are those of ``SFTConfig``, except ``bf16`` (on where an accelerator supports it) and
    ``activation_checkpointing`` (off on the CPU).

    Raises:
        ValueError: a value out of range; the message names the field, the value and what is valid.
    """

    _VALID_DICT_FIELDS = [  # noqa: RUF012 - transformers reads it as a class attribute
        *SFTConfig._VALID_DICT_FIELDS,
        "teacher_model_init_kwargs",
        "output_divergence_kwargs",
        "lens_divergence_kwargs",
        "eval_generate_kwargs",
    ]

    output_divergence: str = field(
        default="reverse_kl",
        metadata={
            "help": "Divergence between the models' outputs, such as reverse_kl, forward_kl or "
            "jsd; docs/divergences.md lists all."
        },
    )
    output_divergence_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Parameters of output_divergence, such as {beta: 0.5} or {alpha: 0.1}."},
    )
    output_weight: float = field(default=1.0, metadata={"help": "Weight of the output divergence."})
    cross_entropy_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy on the labels."}
    )
    lens_divergence: str = field(
        default="jsd",
        metadata={
            "help": "Divergence between the models' intermediate predictions, read through the "
            "logit lens."
        },
    )
    lens_beta: float = field(
        default=0.5, metadata={"help": "beta of lens_divergence jsd; 0.5 is symmetric."}
    )
    lens_divergence_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Parameters of a lens_divergence other than jsd."}
    )
    lens_weight: float = field(
        default=1.0,
        metadata={
            "help": "Weight of the lens divergence, which is a mean over the depth pairs; 0 is "
            "plain KD."
        },
    )
    lens_layers: str = field(
        default="auto",
        metadata={
            "help": 'The depth pairs to compare: "auto", a number of pairs such as "3", '
            'student:teacher pairs such as "2:8,4:16" (in quotes in YAML; depths of the teacher '
            'may repeat), or "exits": every inner depth of the student with the last of the '
            "teacher."
        },
    )
    lens_norm: bool = field(
        default=True,
        metadata={
            "help": "Apply the final norm before the head at every depth (the published code does "
            "not)."
        },
    )
    lens_readout: str = field(
        default="logit",
        metadata={
            "help": 'How inner depths are read: "logit" (by the models\' own final norm and head), '
            'or "tuned": through an affine map of each depth before them, fitted to each model\'s '
            "own output at the start; the student's are then trained along."
        },
    )
    lens_pair_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of the depth pairs, in (0, 1], on which each step estimates the lens "
            "divergence."
        },
    )
    lens_token_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Share of the response tokens, in (0, 1], on which each step estimates the "
            "lens divergence."
        },
    )
    lens_weight_schedule: str = field(
        default="constant",
        metadata={
            "help": "How lens_weight falls to 0 by lens_weight_until: constant (whole until then), "
            "linear or cosine. Evaluations measure the lens with lens_weight throughout."
        },
    )
    lens_weight_until: float = field(
        default=1.0,
        metadata={
            "help": "Share of all steps, in (0, 1], at which lens_weight has fallen to 0; from "
            "there on training does not read the lens."
        },
    )
    lens_pair_weights: list[float] | str | None = field(
        default="uniform",
        metadata={
            "help": "Weights of the depth pairs, scaled to a mean of 1: uniform, depth "
            "(proportional to the student's depth), or a number for each pair, such as [1, 2, 3]."
        },
    )
    lens_token_weights: str = field(
        default="uniform",
        metadata={
            "help": "Weights of the tokens in the lens: uniform, or entropy: 1 - exp(-H) with the "
            "entropy H of the teacher's output, in nats."
        },
    )
    lens_detach_head: bool = field(
        default=False,
        metadata={"help": "Train the student's head by the other terms only, not by the lens."},
    )
    feature_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the feature loss: the distance of the models' hidden states, before "
            "any norm, at the depth pairs, through a learned projection where widths differ."
        },
    )
    feature_loss: str = field(
        default="mse",
        metadata={
            "help": "The distance: mse (mean over the teacher's width) or cosine (1 - cosine "
            "similarity)."
        },
    )
    temperature: float = field(
        default=1.0,
        metadata={
            "help": "Divides the logits of both models, at the output and in the lens; losses are "
            "not multiplied by T^2."
        },
    )

    on_policy_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the steps, from 0 to 1, in which the student answers the prompts "
            "itself and is compared with the teacher on what it wrote, without a cross-entropy."
        },
    )
    on_policy_from: float = field(
        default=0.0,
        metadata={
            "help": "Share of all steps, below 1, that train on the answers of the data before the "
            "student writes any."
        },
    )
    on_policy_max_new_tokens: int = field(
        default=128,
        metadata={"help": "Longest answer that the student writes in training, in tokens."},
    )
    on_policy_temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature, above 0, at which the student samples these answers."},
    )

    eval_generate: bool = field(
        default=False,
        metadata={
            "help": "Also generate answers to the evaluation data and score them with Rouge-L; the "
            "checkpoint with the best score becomes the final model."
        },
    )
    eval_generate_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "How eval_generate generates, such as {greedy: true, limit: 200}: "
            "max_new_tokens (256), temperature (1), top_p (1), greedy (false), seed (10), limit "
            "(all), batch_size (32)."
        },
    )

    save_dtype: str = field(
        default="auto",
        metadata={
            "help": 'The dtype of the final model: "auto" (that of the files that the student '
            "started from; LoRA adapters and random students stay as trained), float32, bfloat16 "
            "or float16. Checkpoints keep the dtype of training."
        },
    )

    # These three depend on the machine when they are not set (None).
    bf16: bool | None = field(
        default=None,
        metadata={"help": "bf16 autocast. Not set: on if the accelerator supports it."},
    )
    activation_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Recompute activations in the backward pass. Not set: on with an accelerator.",
            "nargs": "?",
            "const": True,
        },
    )
    gradient_checkpointing: bool | None = field(
        default=None,
        metadata={
            "help": "Older name of activation_checkpointing.",
            "nargs": "?",
            "const": True,
        },
    )

    def __post_init__(self):
        settle_numbers(self)
        follow_the_machine(self)
        follow_the_answers(self)
        follow_the_metric(self)
        check_bounds(self)
        check_texts(self)
        super().__post_init__()
        load_models_whole(self)
        check_precision(self)
        check_device(self)
        check_types(self)
        check_scope(self)
        check_fraction("lens_pair_fraction", self.lens_pair_fraction)
        settle_teachers(self)
        settle_cross_tokenizer(self)
        check_divergences(self)
        self.objective(layer_map=None)  # checks weights, temperature, token fraction
        if isinstance(self.lens_layers, int) and not isinstance(self.lens_layers, bool):
            self.lens_layers = str(self.lens_layers)
        check_lens_layers(self.lens_layers)
        self.lens_pair_weights = settled_pair_weights(self.lens_pair_weights, self.lens_layers)
        check_forms(self)
        check_on_policy(vars(self))
        check_save_dtype(self.save_dtype)

    def objective(self, layer_map: LayerMap | None) -> Objective:
        """The objective of these settings, over a layer map."""
        return objective_of(self, layer_map)

    def lens_weight_at(self, step: int, num_steps: int) -> float:
        """The weight of the lens in a step, from 0, of a run."""
        share = lens_share(self.lens_weight_schedule, self.lens_weight_until, step, num_steps)
        return share * self.lens_weight

    @property
    def lens_weight_falls(self) -> bool:
        """Whether the weight of the lens depends on the step."""
        return self.lens_weight_schedule != "constant" or self.lens_weight_until < 1
