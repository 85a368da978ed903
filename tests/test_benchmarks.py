"""Engines agree, the flop model equals torch's own count, and the tables match the rows."""

import copy
import importlib
import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
NAMES = ("chunks", "dolly", "loss", "meter", "rivals", "rows", "run", "scaling")
NAMES += ("pipelines", "precision", "steps", "step_tables", "tables", "generation", "on_policy")
NAMES += ("gpu", "gpu_loss", "gpu_steps", "gpu_tables")
bench = {name: importlib.import_module(f"benchmarks.{name}") for name in NAMES}
TOY = {**bench["loss"].TOY, "tokens": 24, "dtype": "float32", "repeats": 1}
# Toy logits are below 10; m is at least 1e-5, so that log(m + 1e-8) is off by less than 1e-3.
BUDGET = {"published formula": 1e-4}


def options(*words):
    return bench["run"].parse(["--toy", *words])


def value_and_gradients(engine, **more):
    """What an engine of the benchmark computes at a toy shape."""
    tensors = bench["loss"].inputs({**TOY, **more})
    loss = bench["rivals"].ENGINES[engine](*tensors)
    loss.backward()
    return loss.detach(), tensors[0].grad, tensors[1].grad


@pytest.mark.parametrize("engine", bench["rivals"].ENGINES)
def test_engines_and_rivals_compute_the_same(engine):
    """Value and both gradients are the reference's; the published one's within its epsilon."""
    if bench["rivals"].missing(engine):
        pytest.skip(bench["rivals"].missing(engine))
    budget = BUDGET.get(engine, 1e-6)
    expected = value_and_gradients("reference")
    for found, right in zip(value_and_gradients(engine), expected, strict=True):
        assert (found - right).abs().max() <= budget * right.abs().max().clamp(min=1)


def test_the_published_epsilon_makes_equal_models_negative():
    """-V * 1e-8 nats for equal distributions: -5.0e-4 at V = 50257."""
    logits = torch.zeros(1, 50257, dtype=torch.float64).float()
    assert bench["rivals"].published_jsd(logits, logits).item() == pytest.approx(-5.0e-4, rel=0.02)


@pytest.mark.parametrize("engine", ["products", "products, aligned", "chunked", "TRL"])
def test_flops_of_a_loss(engine):
    """The stored flops are what torch counts: 2 N V (dt + 3 ds); TRL projects three times."""
    loss = bench["loss"]
    case = loss.finished({**TOY, "engine": engine}, options())
    case |= {"chunk": 8} if engine.startswith("products") else {}
    call = loss.make_call(case, loss.inputs(case))
    with FlopCounterMode(display=False) as counter:
        call()
    uncounted = 4 * 24 * 211 * 8 if engine == "TRL" else 0  # torch leaves out addmm_
    assert counter.get_total_flops() + uncounted == round(case["gflop"] * 1e9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_aligned_floor_is_aligned(dtype, monkeypatch):
    """Every product of "products, aligned" has rows and sizes that are multiples of 16 bytes."""
    loss, seen, unit = bench["loss"], [], 16 // dtype.itemsize
    for name in ("mm", "addmm"):
        product = getattr(torch, name)

        def watched(*given, out, product=product, **more):
            seen.extend([*given[-2:], out])
            return product(*given, out=out, **more)

        monkeypatch.setattr(torch, name, watched)
    case = {"engine": "products, aligned", "chunk": 5, "tokens": 7, "dtype": str(dtype)[6:]}
    tensors = loss.inputs({**case, "vocab": 211, "student_width": 8, "teacher_width": 16})
    loss.make_call(case, tensors)()
    large = [matrix for matrix in seen if max(matrix.shape) > 200]
    assert len(large) == 2 * 4 * 2  # chunks, products, and two matrices of each
    for matrix in large:
        along, across = matrix.stride().index(1), 1 - matrix.stride().index(1)
        assert matrix.stride(across) % unit == 0 and matrix.data_ptr() % 16 == 0
        assert matrix.shape[along] % unit == 0


FORMS = ["weighted by entropy", "after its schedule", "tuned"]


@pytest.mark.parametrize(
    "pipeline",
    ["plain KD", "DistillLens", "TRL", "published", *(f"DistillLens, {form}" for form in FORMS)],
)
def test_flops_of_a_step(pipeline, tmp_path):
    """The flop model is torch's count of a real step of two rows, attention too."""
    pipelines, dolly = bench["pipelines"], bench["dolly"]
    rng = random.Random(0)
    found = [dolly.random_row(*lengths, 211, rng) for lengths in ((9, 20), (12, 17))]
    case = {"shape": "toy", "kind": "steps", "pipelines": [pipeline], "steps": 1}
    case |= {"data": None, "tokenizer": None}
    tokenizer, _ = pipelines.token_rows(case)
    (runner,), _ = pipelines.make_runners(case, found, tokenizer, tmp_path)
    batch = runner.collate(found)
    with FlopCounterMode(display=False) as counter:
        runner.step(batch)
    student, teacher, _ = pipelines.models(case)
    lengths = dolly.lengths(found)
    assert lengths == [(29, 20), (29, 17)]
    if pipeline == "TRL":  # both sides padded; on a CPU every answer position is read
        lengths = [(32, 20), (32, 20)]
    terms = pipelines.flops(pipeline, student, teacher, lengths, pipelines.num_pairs(case))
    model = sum(terms.values()) - terms["optimizer"]
    # torch does not count the CPU's attention kernel without dropout, the teacher's, nor addmm_.
    length = 512 if pipeline == "published" else lengths[0][0]
    model -= 2 * 4 * teacher.layers * teacher.width * length**2
    model -= 4 * 40 * 211 * student.width if pipeline == "TRL" else 0
    assert counter.get_total_flops() == model


def test_the_published_step_is_its_formula(tmp_path):
    """Loss of the pipeline = mean reverse KL + mean JSD of raw states, over valid tokens."""
    pipelines, rivals = bench["pipelines"], bench["rivals"]
    rows = bench["dolly"].synthetic_rows(2, 211, longest=64)
    case = {"shape": "toy"}
    student, teacher = (pipelines.make_model(case, who).eval() for who in ("student", "teacher"))
    pairs = [(1, 1), (2, 3)]
    rival = rivals.PublishedPipeline(student, teacher, pairs, None, length=64)
    found = rival.loss(**rival.collate(rows))
    models = [copy.deepcopy(model).double() for model in (student, teacher)]
    output, lens, count = 0.0, 0.0, 0
    for row in rows:  # one by one, without padding, in float64, with the epsilon
        ids, target = torch.tensor([row["input_ids"]]), torch.tensor(row["completion_mask"]).bool()
        sides = [model(ids, output_hidden_states=True) for model in models]
        heads = [model.lm_head.weight for model in models]
        at = target[1:].nonzero().squeeze(-1)
        q, p = (side.logits[0, at].softmax(-1) for side in sides)
        output += (q * (q / p).log()).sum()
        count += len(at)
        for depths in pairs:
            q, p = (
                (side.hidden_states[d][0, at] @ head.T).softmax(-1)
                for side, head, d in zip(sides, heads, depths, strict=True)
            )
            m = ((p + q) / 2 + 1e-8).log()
            lens += (p * (p.log() - m) + q * (q.log() - m)).sum() / 2 / len(pairs)
    assert found.item() == pytest.approx(((output + lens) / count).item(), rel=1e-5)


def test_whole_tensors_are_refused_where_they_do_not_fit(monkeypatch):
    """A row that says how much would be needed; nothing of that size is allocated."""
    loss = bench["loss"]
    monkeypatch.setattr(bench["meter"], "available_bytes", lambda: 10**9)
    case = loss.finished({**TOY, "engine": "published formula", "tokens": 10**7}, options())
    (row,) = loss.measure(case)
    assert "1 GB are free" in row["skipped"]
    tensors = row["needs_bytes"] / (4 * 10**7 * TOY["vocab"])
    assert 6 <= tensors <= 20  # "at least six live at once"


@pytest.mark.parametrize("part", ["loss", "chunks", "scaling"])
def test_every_case_of_a_part_measures(part, tmp_path):
    """Toy cases in this process; their rows have names of their own and make tables."""
    module = bench[part]
    for case in module.cases(options()):
        for row in module.measure(case):
            bench["rows"].store(tmp_path, part, row)
    found = bench["rows"].load(tmp_path, part)
    assert len(found) == len(module.cases(options()))
    if hasattr(module, "finish"):
        module.finish(tmp_path)
        assert (tmp_path / "scaling.png").stat().st_size < 100_000


def test_toy_steps_measure_and_make_tables(tmp_path):
    """A group of interleaved pipelines and its tables; what is not there yet is a row as well."""
    steps, rows, tables = bench["steps"], bench["rows"], bench["step_tables"]
    cases = [c for c in steps.cases(options()) if c["name"] in ("toy steps", "toy steps published")]
    for case in cases:
        for row in steps.measure(case):
            assert json.loads(json.dumps(row)) == row
            rows.store(tmp_path, "steps", {**row, "threads": 1})
    assert "| DistillLens |" in tables.step_table(tmp_path, "toy")
    assert "DistillLens / plain KD" in tables.ratio_table(tmp_path, "toy")


def test_toy_steps_in_both_precisions(tmp_path):
    """Every step is taken in both, under autocast in one of them; the row makes a line."""
    precision, rows, modes = bench["precision"], bench["rows"], []
    (case,) = [c for c in precision.cases(options()) if c["pipelines"] == ["DistillLens"]]
    run = bench["pipelines"].Runner.run

    def watched(runner, batch):
        with runner.trainer.accelerator.autocast():
            modes.append(torch.is_autocast_enabled("cpu"))
        run(runner, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench["pipelines"].Runner, "run", watched)
        (row,) = precision.measure(case)
    assert modes == [True, False, False, True, True, False]
    assert len(row["float32_cpu_s"]) == len(row["bfloat16_cpu_s"]) == len(row["tokens"]) == 2
    rows.store(tmp_path, "precision", row)
    assert "| DistillLens | float32 | 2 |" in precision.precision_table(tmp_path)


def test_blocks_that_share_weights_are_blocks_of_their_own():
    """Logits of a model with copies of the weights; it holds those of two blocks."""
    make = bench["pipelines"].make_model
    shared, whole = make({"shape": "toy"}, "teacher", blocks=2), make({"shape": "toy"}, "teacher")
    whole.load_state_dict(shared.state_dict())
    ids = torch.arange(12).view(2, 6)
    assert torch.equal(shared.eval()(ids).logits, whole.eval()(ids).logits)
    held, block = (sum(p.numel() for p in m.parameters()) for m in (whole, whole.transformer.h[0]))
    assert sum(p.numel() for p in shared.parameters()) == held - 2 * block
    assert len(set(shared.transformer.h)) == shared.config.n_layer == 4


def test_toy_answers_measure_and_make_a_table(tmp_path):
    """Three engines and the noise; ends come as often as the bias says, so lengths differ."""
    generation, rows = bench["generation"], bench["rows"]
    (case,) = generation.cases(options())
    for row in generation.measure(case):
        assert json.loads(json.dumps(row)) == row
        assert row["engine"] == "noise" or 6 <= row["tokens"][0] <= 72
        rows.store(tmp_path, "generation", row)
    table = bench["tables"].generation_table(tmp_path)
    assert table.count("\n") == 2 + 4 and "| one at a time |" in table and "by a forward" in table


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_the_gpu_command_rehearses_on_the_cpu(tmp_path):
    """A loss part and whole steps: every row is there, ours are right, and tables are made."""
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "--toy", "--results", str(tmp_path)]
    command += ["--parts", "gpt2 steps"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    found = {row["name"]: row for row in bench["rows"].load(tmp_path, "gpu")}
    for case in bench["gpu_loss"].cases("gpt2", toy=True):
        row = found.pop(case["name"])
        if bench["rivals"].missing(case["engine"]):
            assert "skipped" in row
            continue
        assert row["median_s"] > 0 and row["peak_bytes"] >= 0
        if not case["engine"].startswith(("products", "Liger")):
            assert "wrong" not in row and row["value_error"] < 1e-2
    steps = [row for row in found.values() if row["operation"] == "training step"]
    assert [row["steps"] for row in steps] == [3] * 3
    assert [len(row["first_seconds"]) for row in steps] == [3] * 3
    assert {row["dtype"] for row in steps} == {"bfloat16"}
    tables = bench["gpu_tables"].TABLES
    assert "| ours, `triton` 4 |" in tables["gpu-loss"](tmp_path)
    assert "| DistillLens, cached teacher |" in tables["gpu-steps"](tmp_path)
    assert "step toy: plain KD" in done.stdout and (tmp_path / "gpu.log").exists()


def gpu_options(folder, part, *words):
    return bench["gpu"].parse([part, "--toy", "--results", str(folder), *words])


def test_a_gpu_case_that_fails_loses_nothing(tmp_path, monkeypatch, capfd):
    """It is a row that says why; those after it are measured, and the part fails."""
    gpu, gpu_loss, rows = bench["gpu"], bench["gpu_loss"], bench["rows"]
    cases = gpu_loss.cases("precision", toy=True)[:2]
    bad = {**cases[0], "name": "bad", "engine": "none"}
    monkeypatch.setattr(gpu_loss, "cases", lambda part, toy: [bad, *cases])
    device = torch.device("cpu")
    assert gpu.run_cases(gpu_options(tmp_path, "precision"), device, {}) == 1
    first, *rest = rows.load(tmp_path, "gpu")
    assert first["skipped"] == "failed: KeyError: 'none'"
    assert [row["engine"] for row in rest if "median_s" in row] == ["reference", "chunked"]
    assert "| chunked |" in bench["gpu_tables"].precision_table(tmp_path)
    again = gpu_options(tmp_path / "again", "precision", "--after", cases[0]["name"])
    assert gpu.run_cases(again, device, {}) == 1  # it goes on where the device broke
    assert [row["engine"] for row in rows.load(tmp_path / "again", "gpu")] == ["chunked"]


def test_rows_of_another_folder_are_adopted(tmp_path, monkeypatch, capsys):
    """They replace rows of their name; unfinished ones are left out, vanished cases dropped."""
    gpu, rows = bench["gpu"], bench["rows"]
    kept, stale, new = (case["name"] for case in bench["gpu_loss"].cases("qwen", toy=False)[:3])
    ours, theirs = tmp_path / "results", tmp_path / "measured"
    for name in (kept, stale, "a case of the past"):
        rows.store(ours, "gpu", {"name": name, "value": 1})
    for name in (stale, new, *bench["gpu_steps"].names(), "environment", "tests"):
        rows.store(theirs, "gpu", {"name": name, "value": 2})
    rows.store(theirs, "gpu", {"name": kept, "skipped": gpu.UNFINISHED})
    monkeypatch.setattr(rows, "RESULTS", ours)
    assert gpu.main(["adopt", "--results", str(theirs)]) == 0
    found = {row["name"]: row["value"] for row in rows.load(ours, "gpu")}
    assert found.pop(kept) == 1 and set(found.values()) == {2} and len(found) == 7
    assert kept in capsys.readouterr().err


def test_unfinished_tests_are_a_row_and_no_line(tmp_path, monkeypatch, capfd):
    """The row says that they did not finish; only the result is printed."""
    gpu, rows = bench["gpu"], bench["rows"]

    def killed(*given, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu.subprocess, "Popen", killed)
    with pytest.raises(KeyboardInterrupt):
        gpu.main(["tests", "--results", str(tmp_path)])
    assert rows.load(tmp_path, "gpu")[0]["skipped"] == gpu.UNFINISHED
    assert gpu.UNFINISHED not in capfd.readouterr().out


def test_a_wrong_value_marks_its_row():
    """A gradient that is off by a tenth, and a NaN."""
    gpu_loss = bench["gpu_loss"]
    case = gpu_loss.cases("precision", toy=True)[0]
    right = (torch.tensor(2.0).double(), torch.ones(3, 2).double(), torch.ones(4, 2).double())
    assert "wrong" not in gpu_loss.errors(case, right, right)
    off = gpu_loss.errors(case, (right[0], right[1] * 1.1, right[2]), right)
    assert off["wrong"] == "student_gradient_error 1.0e-01"
    assert (
        "value_error nan"
        in gpu_loss.errors(case, (right[0] * torch.nan, *right[1:]), right)["wrong"]
    )


@pytest.mark.parametrize("toy", [False, True])
def test_gpu_cases_have_names_of_their_own(toy):
    """Over all parts; the shapes are GPT-2's and Qwen2.5's."""
    gpu = bench["gpu"]
    found = [case for part in gpu.LOSS for case in bench["gpu_loss"].cases(part, toy)]
    assert len({case["name"] for case in found}) == len(found)
    vocabularies = {211} if toy else {50257, 151936, 8195}
    assert {case["vocab"] for case in found} == vocabularies


def test_rows_replace_their_own_name(tmp_path):
    """A new row takes the place of the old; others stay; names that are gone can be dropped."""
    rows = bench["rows"]
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        rows.store(tmp_path, "part", {"name": name, "value": value})
    assert [(row["name"], row["value"]) for row in rows.load(tmp_path, "part")] == [
        ("a", 3),
        ("b", 2),
    ]
    rows.keep(tmp_path, "part", {"b"})
    assert [row["name"] for row in rows.load(tmp_path, "part")] == ["b"]


def test_a_failing_case_loses_nothing(tmp_path, monkeypatch, capfd):
    """Its name and exit status are said; rows of others and older rows stay."""
    run, rows = bench["run"], bench["rows"]
    rows.store(tmp_path, "loss", {"name": "older"})
    good = {"name": "good", "engine": "chunked", **TOY, "gflop": 0.0}
    monkeypatch.setattr(bench["loss"], "cases", lambda options: [{"name": "bad"}, good])
    assert run.main(["--toy", "loss", "--results", str(tmp_path)]) == 1
    assert [row["name"] for row in rows.load(tmp_path, "loss")] == ["older", "good"]
    assert "failed: loss: bad (exit status 1)" in capfd.readouterr().err


def test_the_list_says_how_long(capsys):
    """Every part with its minutes, without running anything."""
    assert bench["run"].main(["--list"]) == 0
    said = capsys.readouterr().out
    assert all(f"{part}: " in said for part in bench["run"].PARTS) and "all: about" in said


def test_toy_on_policy_steps_measure_and_make_a_table(tmp_path, monkeypatch):
    """Three engines on the same prompts: 4 answers of at most 6 tokens in a step."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    on_policy, rows = bench["on_policy"], bench["rows"]
    case = on_policy.cases(options())[0]
    for row in on_policy.measure(case):
        assert json.loads(json.dumps(row)) == row
        assert all(4 <= tokens <= 24 for tokens in row["tokens"]) and len(row["tokens"]) == 1
        rows.store(tmp_path, "on_policy", row)
    table = on_policy.on_policy_table(tmp_path)
    assert table.count("\n") == 2 + 3 and table.splitlines()[2].endswith("| 1.0 |")


def test_synthetic_rows_have_dollys_lengths():
    """Means of 4000 rows near those of the data: 71 prompt and 68 response tokens."""
    lengths = bench["dolly"].lengths(bench["dolly"].synthetic_rows(4000, 1000))
    prompt = sum(tokens - targets for tokens, targets in lengths) / 4000
    assert prompt == pytest.approx(71.2, rel=0.05)
    assert sum(targets for _, targets in lengths) / 4000 == pytest.approx(67.9, rel=0.1)


@pytest.mark.parametrize("page", bench["tables"].PAGES, ids=lambda page: page.name)
def test_tables_are_what_the_rows_give(page):
    """`python -m benchmarks.tables` has been run since rows or tables changed."""
    tables = bench["tables"]
    assert "<!-- table:" in page.read_text("utf-8")
    assert tables.filled(page) == page.read_text("utf-8")


def test_a_changed_number_is_found(tmp_path):
    """The comparison sees one digit."""
    page = tmp_path / "page.md"
    page.write_text("<!-- table: cost -->\n<!-- end -->\n", "utf-8")
    whole = bench["tables"].filled(page)
    assert whole.count("|") > 20
    page.write_text(whole.replace("415.9", "415.8"), "utf-8")
    assert bench["tables"].filled(page) == whole
