"""The tables of the inspector's page, against values computed here independently."""

import json
import re

import pytest
import torch

pytest.importorskip("matplotlib")

from distilllens import divergence
from distilllens.lens import Passage, divergence_by_depth, inspect_models, trajectory
from distilllens.report import inspector_sections, render_page


@pytest.fixture(scope="module")
def page(inspected):
    """The page as text."""
    sections = inspector_sections(inspected.found, inspected.names, inspected.text_of)
    return render_page("title", "lead", sections)


@pytest.fixture(scope="module")
def tables(page):
    """name -> rows as dictionaries, from the page's own data."""
    (block,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return {
        name: [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
        for name, table in json.loads(block)["tables"].items()
    }


def rows(table, **wanted):
    """The rows of a table with these values."""
    return [row for row in table if all(row[key] == value for key, value in wanted.items())]


def alone(model, passage):
    """The model's trajectory at a passage's positions, all tokens kept: ``[K, N, V]``."""
    found = trajectory(model, top_k=24, input_ids=passage.ids[None])
    tokens, probabilities = (
        x[:, 0, passage.positions] for x in (found.tokens, found.probabilities)
    )
    return torch.zeros_like(probabilities).scatter_(-1, tokens, probabilities)


def test_figure_1_is_divergence_by_depth(inspected, tables):
    """Means over all tokens of all texts, at every pair of depths, of every student."""
    for name, student, found in zip(
        inspected.names[1:], inspected.students, inspected.found.comparisons, strict=True
    ):
        for measure in ("jsd", "forward_kl", "reverse_kl"):
            got = rows(tables["divergence"], student=name, measure=measure)
            assert [(r["student_depth"], r["teacher_depth"]) for r in got] == list(found.pairs)
            for row in got:
                pair = (row["student_depth"], row["teacher_depth"])
                total = 0.0
                for passage in inspected.passages:
                    # The last position of a text counts here: a token more makes it valid there.
                    ids = torch.cat([passage.ids, passage.ids[:1]])
                    labels = torch.full_like(ids, -100)
                    labels[passage.positions + 1] = 1
                    one = divergence_by_depth(
                        student,
                        inspected.teacher,
                        [pair],
                        divergence=divergence(measure),
                        input_ids=ids[None],
                        labels=labels[None],
                    )
                    total += one.means[0] * one.num_tokens
                assert row["mean"] == pytest.approx(total / 28, rel=1e-4, abs=1e-6)
    trained = rows(tables["divergence"], student=inspected.names[1], trained="yes", measure="jsd")
    assert [(r["student_depth"], r["teacher_depth"]) for r in trained] == [(1, 1), (2, 3)]


def test_entropy_final_token_and_settling_are_the_trajectory(inspected, tables):
    """Mean, quartiles and shares from the softmax of every depth."""
    for name, model in zip(inspected.names, [inspected.teacher, *inspected.students], strict=True):
        p = torch.cat([alone(model, passage) for passage in inspected.passages], 1).double()
        entropy = -torch.special.xlogy(p, p).sum(-1)
        top = p.argmax(-1)
        final = p.gather(-1, top[-1:, :, None].expand(len(p), -1, 1))[..., 0]
        for table, values in (("entropy", entropy), ("final", final)):
            got = rows(tables[table], model=name)
            assert [r["mean"] for r in got] == pytest.approx(values.mean(1).tolist(), rel=1e-4)
            for key, q in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75)):
                expected = values.quantile(q, dim=1).tolist()
                assert [r[key] for r in got] == pytest.approx(expected, rel=1e-4)
        settled = [
            sum((top[d:, n] == top[-1, n]).all().item() for n in range(28)) / 28
            for d in range(len(p))
        ]
        assert [r["share"] for r in rows(tables["settled"], model=name)] == pytest.approx(
            settled, rel=1e-5
        )


def test_confidence_and_ratios_are_sums_over_the_vocabulary(inspected, tables):
    """The student's probability above and below the teacher's, and the histogram of q / p."""
    name, student = inspected.names[1], inspected.students[0]
    p, q = (
        torch.cat([alone(m, passage) for passage in inspected.passages], 1).double()
        for m in (inspected.teacher, student)
    )
    for row in rows(tables["confidence"], student=name):
        theirs, ours = p[row["teacher_depth"]], q[row["student_depth"]]
        top = torch.zeros_like(theirs).scatter_(-1, theirs.topk(10).indices, 1).bool()
        for side, gap in (("over", ours - theirs), ("under", theirs - ours)):
            gap = gap.clamp_min(0)
            for part, mask in (("top_ten", top), ("rest", ~top)):
                expected = float((gap * mask).sum(-1).mean())
                assert row[f"{side}_{part}"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    shares = rows(tables["penalty"], student=name, student_depth=2)
    assert sum(row["teacher_share"] for row in shares) == pytest.approx(1)
    middle = [row for row in shares if 1 - 1e-9 <= row["r_from"] < 2]
    ratio = q[2] / p[3]
    for row in middle:
        inside = (ratio >= row["r_from"]) & (ratio < row["r_to"])
        assert row["teacher_share"] == pytest.approx(float(p[3][inside].sum() / 28), abs=2e-3)


def test_reliability_is_over_tokens_whose_successor_is_known(inspected, tables):
    """The next token is known for 26 of 28 tokens; weighted accuracies count the correct ones."""
    for name, model in zip(inspected.names, [inspected.teacher, *inspected.students], strict=True):
        got = rows(tables["reliability"], model=name)
        assert sum(row["tokens"] for row in got) == 26
        right = 0
        for passage in inspected.passages:
            known = passage.positions[passage.positions < len(passage.ids) - 1]
            best = model(passage.ids[None]).logits[0].argmax(-1)
            right += int((best[known] == passage.ids[known + 1]).sum())
        found = sum(row["accuracy"] * row["tokens"] for row in got)
        assert found == pytest.approx(right, rel=1e-5)  # numbers have six digits


def test_the_sides_of_a_penalty_sum_to_the_divergence(inspected, page, tables):
    """The small tables beside the penalty split the divergence of a pair in two."""
    row = rows(
        tables["divergence"], student=inspected.names[1], student_depth=2, measure="forward_kl"
    )[0]
    (table,) = re.findall(r'<div data-when="student=1 depth1=2">(.*?)</table>', page)
    cells = [float(x) for x in re.findall(r"<td>([\d.e-]+)</td>", table)][:3]
    assert cells[0] == pytest.approx(row["mean"], rel=1e-3)
    assert cells[1] + cells[2] == pytest.approx(cells[0], rel=1e-3)


def test_one_model_alone_has_no_student(inspected):
    """The classic logit lens: no divergence, no penalty, no second table."""
    found = inspect_models(inspected.teacher, inspected.passages[:1])
    html = render_page("t", "l", inspector_sections(found, ["m"], str))
    for name in ("entropy", "final", "settled", "lens", "reliability"):
        assert f'id="{name}"' in html
    for name in ("divergence", "confidence", "penalty"):
        assert f'id="{name}"' not in html


def test_one_token_has_no_successor(inspected):
    """Without a known next token the reliability plot is left out; all others are drawn."""
    passage = Passage(torch.tensor([3]), torch.tensor([0]))
    found = inspect_models(inspected.teacher, [passage], inspected.students[:1])
    html = render_page("t", "l", inspector_sections(found, ["t", "s"], str))
    assert 'id="penalty"' in html and 'id="reliability"' not in html


@pytest.mark.slow
def test_the_page_keeps_its_budget():
    """With 12 pairs, 200 tokens and a large vocabulary the page stays under 3 MB."""
    import toys

    teacher = toys.llama(24, 16, vocab=5000, positions=256)
    student = toys.llama(12, 16, vocab=5000, positions=256)
    ids = torch.randint(2, 5000, (200,), generator=torch.Generator().manual_seed(0))
    trained = [[(s, 2 * s) for s in range(1, 12)]]
    found = inspect_models(teacher, [Passage(ids, torch.arange(200))], [student], trained=trained)
    text_of = "␣word{}".format
    html = render_page("t", "l", inspector_sections(found, ["t", "s"], text_of))
    assert '"left_out":0' in html
    assert len(html.encode()) < 3e6
