"""Every recipe in examples/ parses and has the settings of the paper's table; the script runs."""

import json
import runpy
import statistics
from pathlib import Path

import pytest
import torch
import toys
import yaml

from distilllens import LayerMap
from distilllens.cli.train_arguments import make_parser, parse
from distilllens.workflows.recipe_fields import check_recipe
from distilllens.workflows.recipe_file import read_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"
# Blocks of student and teacher, pairs, learning rate, epochs: the paper's (docs/paper.md).
PAPER = {
    "gpt2_120m.yaml": (12, 48, 5, 2e-4, 20),
    "gpt2_340m.yaml": (24, 48, 5, 5e-5, 20),
    "tinyllama_1.1b.yaml": (22, 32, 5, 5e-6, 10),
    "qwen2.5_1.5b_lora.yaml": (28, 36, 4, 1e-4, 10),
}


@pytest.mark.parametrize(
    "path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda p: p.relative_to(EXAMPLES).as_posix()
)
def test_a_recipe_is_read(path, tmp_path):
    """All fields exist and parse; only paths are missing, which the command line gives."""
    parser = make_parser("train", "")  # a recipe sets a parser's defaults
    recipe = read_recipe(str(path))
    check_recipe(recipe, {action.dest: action for action in reversed(parser._actions)})
    flags = ["--output_dir", str(tmp_path), "--train_file", "train.jsonl", "--use_cpu"]
    job, model, training, given = parse(parser, recipe.values, flags)
    assert given.keys() >= recipe.values.keys()
    settings = PAPER.get(path.name)
    if settings is not None:
        student, teacher, pairs, rate, epochs = settings
        layer_map = LayerMap.parse(training.lens_layers).check(student, teacher)
        assert len(layer_map) == pairs
        assert layer_map.student_depths == LayerMap.evenly(pairs, student, teacher).student_depths
        assert (training.learning_rate, training.num_train_epochs) == (rate, epochs)
        assert (training.max_length, job.max_prompt_length, training.seed) == (512, 256, 10)
        assert (training.output_divergence, training.lens_divergence) == ("reverse_kl", "jsd")
        assert model.use_peft == ("lora" in path.name)


def test_every_setting_of_the_paper_has_a_recipe():
    """The table above names files that exist."""
    for name in PAPER:
        assert yaml.safe_load((EXAMPLES / name).read_text())["model_name_or_path"]


def test_compare_prints_a_row_for_every_model(tmp_path, monkeypatch, capsys):
    """The teacher is 0 from itself at the output and at every depth; another model is not."""
    toys.llama(3, 16).save_pretrained(tmp_path / "teacher")
    toys.llama(3, 16, seed=1).save_pretrained(tmp_path / "other")
    toys.tokenizer().save_pretrained(tmp_path / "teacher")
    rows = "".join(json.dumps(row) + "\n" for row in toys.examples(4))
    (tmp_path / "dev.jsonl").write_text(rows)
    monkeypatch.chdir(tmp_path)
    words = "compare.py --teacher teacher --student teacher --student other --data dev.jsonl"
    monkeypatch.setattr("sys.argv", [*words.split(), "--layers", "1:1,2:2"])
    runpy.run_path(str(EXAMPLES / "compare.py"), run_name="__main__")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]
    header, alone, same, other = cells
    assert header[0] == "model"
    assert alone[2:] == ["-", "-", "-"]
    assert same[:2] == alone[:2]
    assert [float(value) for value in same[2:]] == [0, 0, 0]
    assert min(float(value) for value in other[2:]) > 0.01


def test_the_image_study_runs_and_its_table_is_of_its_rows(tmp_path, monkeypatch, capsys):
    """At a tiny size: a row for each run, the table's means, and an interval by hand."""
    pytest.importorskip("sklearn")
    script = str(EXAMPLES / "image_classifier" / "distil.py")
    monkeypatch.chdir(tmp_path)
    words = "distil.py --output rows.json --seeds 3 --epochs 2 --width 16 --limit 40"
    monkeypatch.setattr("sys.argv", words.split())
    runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    rows = json.loads(Path("rows.json").read_text())["rows"]
    assert [row["method"] for row in rows] == ["teacher"] * 2 + ["kd"] * 7 + ["kd_lens"] * 7
    kl = {m: [r["kl"] for r in rows if r["method"] == m][-3:] for m in ("kd", "kd_lens")}
    apart = [ours - theirs for theirs, ours in zip(*kl.values(), strict=True)]
    # Student's t with 2 degrees of freedom: 4.3027 holds 95 % between -t and t.
    half, middle = 4.3027 * statistics.stdev(apart) / 3**0.5, statistics.mean(apart)
    line = next(line for line in printed.splitlines() if line.startswith("| KL"))
    assert f"| {statistics.mean(kl['kd']):.4f} ± {statistics.stdev(kl['kd']):.4f} |" in line
    assert line.endswith(f"| {middle:+.4f} [{middle - half:+.4f}, {middle + half:+.4f}] |")
    monkeypatch.setattr("sys.argv", ["distil.py", "--output", "rows.json", "--table"])
    runpy.run_path(script, run_name="__main__")
    assert capsys.readouterr().out == printed


def test_the_kept_rows_of_the_image_study_give_the_published_table(capsys, monkeypatch):
    """Of the folder's page, from the rows beside the script."""
    pytest.importorskip("sklearn")
    folder = EXAMPLES / "image_classifier"
    monkeypatch.setattr("sys.argv", ["distil.py", "--output", str(folder / "rows.json"), "--table"])
    runpy.run_path(str(folder / "distil.py"), run_name="__main__")
    assert capsys.readouterr().out in (folder / "README.md").read_text(encoding="utf-8")


def test_the_published_masks_are_those_of_repeated_rows():
    """Lens rows stacked sample by sample, masks repeated as a whole, one a pair."""
    script = runpy.run_path(str(EXAMPLES.parent / "studies" / "published_mask.py"))
    mask = torch.eye(4, 6).bool()
    num_pairs = len(script["PAIRS"])
    repeated = mask.repeat(num_pairs, 1)
    found = script["lens_masks"](mask, "published masks")
    for sample in range(4):
        for pair in range(num_pairs):
            assert found[pair, sample].equal(repeated[sample * num_pairs + pair])
    assert not found.equal(own := script["lens_masks"](mask, "own masks"))
    assert all(one.equal(mask) for one in own)
