"""Two heads and their rows, what an engine makes of them, and how far two engines may differ."""

import dataclasses

import torch

from distilllens.head import Head
from distilllens.linear_divergence import linear_cross_entropy, linear_divergence

DIVERGENCES = {
    "forward_kl": {},
    "reverse_kl": {},
    "jsd": {"beta": 0.3},
    "jeffreys": {"forward_weight": 0.3, "reverse_weight": 2.0},
    "adaptive_kl": {"mu": 0.6},
    "skew_forward_kl": {"alpha": 0.2},
    "skew_reverse_kl": {"alpha": 0.2},
    "total_variation": {},
}

# The error budget: largest difference over largest entry, for the value, the nats per token, and
# the gradients of hidden states, weight and bias. Engine and reference round at different places;
# bfloat16 keeps 8 bits, so 2^-8 = 0.4 % an entry, a few of which meet in one gradient.
BUDGET = {
    #               loss   tokens hidden weight bias
    torch.float64: (1e-14, 1e-14, 1e-14, 1e-14, 1e-14),
    torch.float32: (2e-6, 4e-6, 4e-6, 4e-6, 4e-6),
    torch.bfloat16: (2e-3, 1e-2, 3e-2, 3e-2, 3e-2),
}


@dataclasses.dataclass
class Problem:
    """Two heads and their rows, with leaves that collect gradients."""

    student: torch.Tensor
    student_head: Head
    teacher: torch.Tensor
    teacher_head: Head
    weight: torch.Tensor
    labels: torch.Tensor

    def to(self, device):
        """The same on a device, with leaves of its own."""

        def move(tensor):
            return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

        def moved(head):
            return dataclasses.replace(head, weight=move(head.weight), bias=move(head.bias))

        heads = {name: moved(getattr(self, name)) for name in ("student_head", "teacher_head")}
        rest = ("student", "teacher", "weight", "labels")
        return Problem(**{name: move(getattr(self, name)) for name in rest}, **heads)

    def double(self):
        """The same numbers in float64, for a truth without rounding."""

        def wide(tensor):
            return tensor.detach().double().requires_grad_(tensor.requires_grad)

        def widened(head):
            return dataclasses.replace(head, weight=wide(head.weight), bias=wide(head.bias))

        heads = {name: widened(getattr(self, name)) for name in ("student_head", "teacher_head")}
        rows = {name: wide(getattr(self, name)) for name in ("student", "teacher", "weight")}
        return Problem(**rows, **heads, labels=self.labels)

    @property
    def leaves(self):
        return self.student, self.student_head.weight, self.student_head.bias

    def run(self, name, **options):
        """Loss and nats per token; ``name`` may be cross_entropy."""
        if name == "cross_entropy":
            return linear_cross_entropy(
                self.student, self.student_head, self.labels, weight=self.weight, **options
            )
        return linear_divergence(
            self.student,
            self.student_head,
            self.teacher,
            self.teacher_head,
            divergence=name,
            weight=self.weight,
            **DIVERGENCES[name],
            **options,
        )


def problem(rows=47, student_vocab=31, teacher_vocab=31, dtype=torch.float64, **options):
    """A student of width 7 and a teacher of width 5; the same numbers in every dtype."""
    generator = torch.Generator().manual_seed(rows)

    def make(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    leaves = [make(rows, 7), make(student_vocab, 7), make(student_vocab)]
    student, weight, bias = (leaf.requires_grad_() for leaf in leaves)
    teacher_head = Head(make(teacher_vocab, 5), make(teacher_vocab), 1.2, options.get("softcap"))
    return Problem(
        student,
        Head(weight, bias, **options),
        make(rows, 5),
        teacher_head,
        torch.rand(rows, generator=generator),
        torch.randint(student_vocab, (rows,), generator=generator),
    )


def results(given, name, upstream=-1.7, **options):
    """Loss, nats per token and the three gradients under an upstream gradient."""
    loss, per_token = given.run(name, **options)
    return loss.detach(), per_token, *torch.autograd.grad(loss, given.leaves, loss * 0 + upstream)


def assert_within_budget(found, expected, dtype):
    for ours, theirs, budget in zip(found, expected, BUDGET[dtype], strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        error = (ours - theirs).abs().max() / theirs.abs().max()
        assert error <= budget, f"{error:.1e} over the budget {budget}"
