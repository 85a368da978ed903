"""docs/methods.md: every recipe is trained on the loss that its row promises."""

import math
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import toys
import yaml
from torch.distributions import Categorical, kl_divergence

ROOT = Path(__file__).parents[1]


def loaded_tool():
    """tools/methods_table.py as a module."""
    spec = spec_from_file_location("methods_table", ROOT / "tools" / "methods_table.py")
    tool = module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


TOOL = loaded_tool()
PAIRS = [(1, 2), (2, 3)]


def kl(p, q):
    return kl_divergence(Categorical(p), Categorical(q))


def jsd(p, q):
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def adaptive(p, q):
    """Both KLs, weighted by the gaps in the head (mass up to a half) and in the tail."""
    ranked = sorted(range(len(p)), key=lambda token: -float(p[token]))
    mass, head = 0.0, []
    for token in ranked:
        mass += float(p[token])
        if mass <= 0.5 or not head:
            head.append(token)
    gaps = (p - q).abs()
    share = gaps[head].sum() / gaps.sum()
    return share * kl(p, q) + (1 - share) * kl(q, p)


# Method -> what a token adds, for probabilities p of the teacher and q of the student: the weight
# of -log q(label), the output's and the lens's divergence, and the temperature of both.
FORMULAS = {
    "SFT": (1, None, None, 1),
    "SeqKD (Kim and Rush 2016)": (1, None, None, 1),
    "KD (Hinton et al. 2015)": (0.5, lambda p, q: kl(p, q) / 2, None, 2),
    "forward KL": (0, kl, None, 1),
    "reverse KL (the loss of MiniLLM, Gu et al. 2024)": (0, lambda p, q: kl(q, p), None, 1),
    "FKL + RKL": (0, lambda p, q: (kl(p, q) + kl(q, p)) / 2, None, 1),
    "JSD (the loss of GKD, Agarwal et al. 2024)": (0, jsd, None, 1),
    "AKL (Wu et al. 2025)": (0, adaptive, None, 1),
    "skew KL (DistiLLM, Ko et al. 2024)": (0, lambda p, q: kl(p, 0.1 * p + 0.9 * q), None, 1),
    "skew reverse KL (DistiLLM)": (0, lambda p, q: kl(q, 0.9 * p + 0.1 * q), None, 1),
    "total variation (f-distill, Wen et al. 2023)": (
        0,
        lambda p, q: (p - q).abs().sum() / 2,
        None,
        1,
    ),
    "DistillLens": (0, lambda p, q: kl(q, p), jsd, 1),
    "DistillLens, Jeffreys": (0, lambda p, q: kl(q, p), lambda p, q: kl(p, q) + kl(q, p), 1),
    "DistillLens as published": (0, lambda p, q: kl(q, p), jsd, 1),
}


def read(model, ids, normed):
    """Logits of every depth by the model's own modules, ``[L + 1][T, V]`` in float64."""
    with torch.no_grad():
        found = model(ids[None], output_hidden_states=True)
        *inner, _ = found.hidden_states
        inner = [model.lm_head(model.model.norm(h) if normed else h) for h in inner]
    return [logits[0] for logits in (*inner, found.logits)]


@pytest.mark.parametrize("method", TOOL.methods(), ids=lambda method: method.name)
def test_a_recipe_is_its_formula(tmp_path, method):
    """The first logged loss, from the lines of the page, to float32 rounding."""
    lines = [line for line in TOOL.recipe_lines(method) if "TEACHER" not in line]
    settings = yaml.safe_load("\n".join(lines))
    if settings.get("lens_layers", "auto") == "auto":
        settings["lens_layers"] = ",".join(f"{s}:{t}" for s, t in PAIRS)
    trainer = toys.trainer(
        tmp_path,
        teacher="default" if method.teacher else None,
        max_steps=1,
        per_device_train_batch_size=8,
        **settings,
    )
    rows = list(trainer.train_dataset)
    trainer.train()
    loss = trainer.state.log_history[0]["loss"]
    if method.name not in FORMULAS:  # a test of its own compares it with its formula
        assert TOOL.FORMULA not in method.tests and math.isfinite(loss)
        return
    of_label, at_output, in_lens, heat = FORMULAS[method.name]
    student, teacher = toys.llama().double().eval(), toys.llama(4, 24, seed=1).double().eval()
    normed, total, count = method.name != "DistillLens as published", 0.0, 0
    for row in rows:
        ids = torch.tensor(row["input_ids"])
        ours, theirs = (read(model, ids, normed) for model in (student, teacher))
        for at in (n for n, label in enumerate(row["labels"][1:]) if label != -100):
            count += 1
            q, p = ((x[-1][at] / heat).softmax(-1) for x in (ours, theirs))
            total -= of_label * float(ours[-1][at].log_softmax(-1)[ids[at + 1]])
            total += float(at_output(p, q)) if at_output else 0.0
            for s, t in PAIRS if in_lens else ():
                q, p = ours[s][at].softmax(-1), theirs[t][at].softmax(-1)
                total += float(in_lens(p, q)) / len(PAIRS)
    assert count > 20
    assert math.isclose(loss, total / count, rel_tol=1e-5)


def test_every_method_of_today_is_there():
    """A row is missing only where a field of its recipe does not exist yet."""
    known = TOOL.known_fields()
    absent = [m.name for m in TOOL.METHODS if m not in TOOL.methods()]
    assert all(set(m.recipe) - known for m in TOOL.METHODS if m.name in absent)
    assert FORMULAS.keys() <= {method.name for method in TOOL.methods()}


def test_the_page_is_todays():
    """docs/methods.md holds what tools/methods_table.py writes."""
    page = TOOL.PAGE.read_text(encoding="utf-8")
    assert TOOL.rewritten(page) == page, "run python tools/methods_table.py"


@pytest.mark.parametrize(
    "change",
    [{"tests": ()}, {"tests": ("tests/test_methods.py::test_no_such",)}, {"code": ("no.such",)}],
    ids=["no test", "a wrong test", "wrong code"],
)
def test_a_row_without_a_test_or_code_is_refused(monkeypatch, change):
    """The script writes no page that claims what nothing shows."""
    row = TOOL.METHODS[0]
    values = {name: getattr(row, name) for name in ("name", "recipe", "code", "tests")}
    monkeypatch.setattr(TOOL, "METHODS", (TOOL.Method(**values | change),))
    with pytest.raises(ValueError, match=r"SFT names (no test|.*which is not there)"):
        TOOL.table()
