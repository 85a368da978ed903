"""What we compare with: the published formula and pipeline, TRL and Liger-Kernel.

The published code was not used: its loss and its step are written here from their formulas.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.meter import LiveBytes
from distilllens import Head, linear_divergence

EPSILON = 1e-8  # of the published formula


def published_jsd(student_logits, teacher_logits):
    """``[..., V]`` logits -> JSD per token, whole float32 tensors: log(m + 1e-8), m = (p+q)/2."""
    student_logits, teacher_logits = student_logits.float(), teacher_logits.float()
    q, p = student_logits.softmax(-1), teacher_logits.softmax(-1)
    log_m = torch.log((p + q) / 2 + EPSILON)
    to_teacher = (p * (teacher_logits.log_softmax(-1) - log_m)).sum(-1)
    to_student = (q * (student_logits.log_softmax(-1) - log_m)).sum(-1)
    return (to_teacher + to_student) / 2


def published_reverse_kl(student_logits, teacher_logits):
    """``[..., V]`` logits -> KL(student || teacher) per token, whole float32 tensors."""
    log_q = student_logits.float().log_softmax(-1)
    log_p = teacher_logits.float().log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def published_formula(student, head, teacher, teacher_head):
    """The JSD of rows of hidden states, summed."""
    with torch.no_grad():
        teacher_logits = teacher @ teacher_head.T
    return published_jsd(student @ head.T, teacher_logits).sum()


def ours(student, head, teacher, teacher_head, *, impl, chunk_size=None):
    """linear_divergence."""
    options = {"divergence": "jsd", "impl": impl, "chunk_size": chunk_size}
    return linear_divergence(student, Head(head), teacher, Head(teacher_head), **options)[0]


def trl(student, head, teacher, teacher_head):
    """The chunked divergence of TRL's DistillationTrainer: a private name of trl 1.16."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    sides = (student, head, None, teacher, teacher_head, None)
    return ChunkedDivergenceFunction.apply(*sides, 0.5)[0].sum()


def liger(student, head, teacher, teacher_head, *, compiled=None):
    """Liger-Kernel's chunked JSD; compiled where there is a GPU, as its own default is."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    compiled = student.device.type != "cpu" if compiled is None else compiled
    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=compiled)
    targets = torch.zeros(len(student), dtype=torch.long, device=student.device)
    return loss(student, head, teacher, teacher_head, targets) * len(student)


ENGINES = {
    "chunked": partial(ours, impl="chunked"),
    "reference": partial(ours, impl="reference"),
    "published formula": published_formula,
    "TRL": trl,
    "Liger": liger,
}
WHOLE = ("reference", "published formula")  # these hold [N, V] tensors


def missing(engine: str) -> str | None:
    """Why an engine cannot run here, or None."""
    try:
        if engine.startswith("Liger"):
            from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss  # noqa: F401
        if engine == "TRL":
            from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # noqa: F401
    except ImportError as error:
        return f"not installed: {str(error).splitlines()[0]}"
    return None


def whole_tensors(engine) -> float:
    """How many float32 ``[N, V]`` tensors a call holds at its peak, counted at a toy shape."""
    tokens, vocab = 32, 4001
    student = torch.randn(tokens, 4, requires_grad=True)
    head = torch.randn(vocab, 4, requires_grad=True)
    with LiveBytes() as live:
        ENGINES[engine](student, head, torch.randn(tokens, 4), torch.randn(vocab, 4)).backward()
    return live.most / (4 * tokens * vocab)


class PublishedPipeline:
    """A training step as published: rows padded to one length, all logits kept.

    The final logits and those of every pair are there at once for all positions, from raw states
    (no final norm), for the student and for the teacher, which runs in every step. A fair rival
    otherwise: the models' own attention kernel, the same dtype and AdamW, means over valid tokens.
    """

    def __init__(self, student, teacher, pairs, optimizer, *, length=512, pad=0):
        self.student, self.teacher, self.pairs = student, teacher.eval(), tuple(pairs)
        self.optimizer, self.length, self.pad = optimizer, length, pad

    def collate(self, rows):
        """Rows of ids and completion masks, all padded to ``length``."""
        ids = torch.full((len(rows), self.length), self.pad)
        labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
        for at, row in enumerate(rows):
            found = torch.tensor(row["input_ids"])
            target = torch.tensor(row["completion_mask"]).bool()
            ids[at, : len(found)], mask[at, : len(found)] = found, 1
            labels[at, : len(found)][target] = found[target]
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    def loss(self, input_ids, attention_mask, labels):
        """Reverse KL at the output and the mean JSD of the pairs, over valid tokens."""
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        student_depths, teacher_depths = zip(*self.pairs, strict=True)
        student, student_lens = _all_logits(self.student, student_depths, inputs)
        with torch.no_grad():
            teacher, teacher_lens = _all_logits(self.teacher, teacher_depths, inputs)
        valid = F.pad(labels[:, 1:] != -100, (0, 1)).float()
        count = valid.sum()
        output = (published_reverse_kl(student, teacher) * valid).sum() / count
        lens = (published_jsd(student_lens, teacher_lens) * valid).sum() / (count * len(self.pairs))
        return output + lens

    def step(self, batch):
        """One optimizer step."""
        self.student.train()
        self.loss(**batch).backward()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _all_logits(model, depths, inputs):
    """Final logits ``[B, T, V]``, and ``[P, B, T, V]`` of raw states at the depths."""
    found = model(**inputs, output_hidden_states=True, use_cache=False)
    head = model.get_output_embeddings()
    return found.logits, head(torch.stack([found.hidden_states[depth] for depth in depths]))


def trl_trainer(student, teacher, rows, *, folder, tokenizer, batch):
    """TRL's DistillationTrainer (reverse KL at the output, no lens) on answers that are given.

    It only knows prompts and lets the student write the answers, step by step. Two private methods
    are replaced, so that a "prompt" is the number of a row and its answer is the row's own; what is
    timed is therefore its step without any generation.
    """
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    def split(row):
        start = row["completion_mask"].index(1)
        return row["input_ids"][:start], row["input_ids"][start:]

    class OffPolicy(DistillationTrainer):
        def _tokenize_prompts(self, prompts):
            self.answers = [split(rows[int(prompt)])[1] for prompt in prompts]
            return [split(rows[int(prompt)])[0] for prompt in prompts], None, {}

        def _generate_single_turn(self, *args, **kwargs):
            return self.answers

    args = DistillationConfig(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        beta=1.0,
        max_completion_length=512,
        gradient_checkpointing=False,
        activation_checkpointing=False,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    return OffPolicy(
        student,
        teacher,
        args=args,
        train_dataset=Dataset.from_list([{"prompt": str(at)} for at in range(len(rows))]),
        processing_class=tokenizer,
    )
