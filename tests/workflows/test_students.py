"""A student that is cut out of its teacher is trained, resumed, read and reported as any other."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import toys
from safetensors.torch import load_file
from toys import recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from distilllens.cli import main
from distilllens.workflows import run_models
from distilllens.workflows.students import load_student

BLOCKS = {"model_name_or_path": None, "student_blocks": [0, 1, 3]}
IDS = torch.tensor([[3, 9, 4, 17, 5, 2]])
TRAIN = ["train", "--config", "recipe.yaml"]


def truth(folder, dropped):
    """The teacher's own logits, in float32, with one of its blocks returning its input."""
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    teacher.model.layers[dropped].register_forward_hook(lambda module, args, output: args[0])
    with torch.no_grad():
        return teacher(IDS, use_cache=False).logits


def note(out):
    return json.loads((out / "run.json").read_text())


def weights(out):
    return load_file(out / "model.safetensors")


@pytest.mark.parametrize("blocks", [[0, 1, 3], "0,1,3"])
def test_a_run_starts_as_the_teacher_with_these_blocks(workshop, capsys, blocks):
    """A step of size 0 leaves the teacher's own logits without block 2, its tokenizer and its map.

    The map is 1:1,2:2, after blocks 0 and 1; evenly spaced it would be 1:1,2:3.
    """
    recipe(workshop, **BLOCKS | {"student_blocks": blocks}, learning_rate=0.0, max_steps=1)
    assert main(TRAIN) == 0
    out = workshop / "out"
    student = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert torch.equal(student(IDS, use_cache=False).logits, truth("teacher", dropped=2))
    assert note(out)["layer_map"] == "1:1,2:2"
    assert note(out)["recipe"]["fields"]["student_blocks"] == [0, 1, 3]
    assert AutoTokenizer.from_pretrained(out).get_vocab() == toys.tokenizer().get_vocab()
    said = capsys.readouterr().err
    assert "student    blocks 0, 1, 3 of teacher: " in said
    assert "1:1, 2:2 (student:teacher; lens_layers auto: after the blocks that" in said
    assert "`blocks 0, 1, 3 of teacher`" in (out / "README.md").read_text()
    page = ["--prompt", "the cat sat", "--output", "page.html"]
    assert main(["inspect", "--teacher", "teacher", "--student", "out", *page]) == 0
    assert "Paired depths, student:teacher: 1:1,2:2." in (workshop / "page.html").read_text()
    capsys.readouterr()
    assert main([*TRAIN, "--student_blocks", "0, 1,3"]) == 0
    assert "nothing to do" in capsys.readouterr().err


def test_it_resumes_to_the_same_bits_and_other_blocks_are_another_run(workshop, capsys):
    """After step 2 of 4; a number of blocks, or others, belong to another recipe."""
    recipe(workshop, **BLOCKS)
    assert main(TRAIN) == 0
    out, expected = workshop / "out", weights(workshop / "out")
    for path in out.iterdir():
        if path.name not in ("run.json", "checkpoint-2"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (out / "run.json").write_text(json.dumps(note(out) | {"finished": False}))
    for other in ("3", "0,2,3"):
        assert main([*TRAIN, "--student_blocks", other]) == 2
        assert "student_blocks was [0, 1, 3] and is now" in capsys.readouterr().err
    assert main(TRAIN) == 0
    assert "resuming from out/checkpoint-2" in capsys.readouterr().err
    assert toys.drift(expected, weights(out)) == 0


def test_a_pruned_folder_is_the_same_student(workshop, capsys):
    """The same weights after four steps, with the same map; what it leaves remembers its blocks.

    A student of the trained student's folder is paired by its blocks too, and beside a teacher of
    another number of blocks by the usual rule.
    """
    recipe(workshop, **BLOCKS)
    assert main(TRAIN) == 0
    blocks = ["--blocks", "0,1,3", "--output", "pruned"]
    assert main(["prune", "--model", "teacher", *blocks]) == 0
    recipe(workshop, model_name_or_path="pruned", output_dir="again")
    assert main(TRAIN) == 0
    assert toys.drift(weights(workshop / "out"), weights(workshop / "again")) == 0
    assert note(workshop / "again")["layer_map"] == "1:1,2:2"
    recipe(workshop, model_name_or_path="again", output_dir="longer", max_steps=1)
    assert main(TRAIN) == 0
    assert note(workshop / "longer")["layer_map"] == "1:1,2:2"
    toys.llama(6, 24, seed=1).save_pretrained(workshop / "deep")
    toys.tokenizer().save_pretrained(workshop / "deep")
    recipe(
        workshop,
        model_name_or_path="again",
        teacher_model_name_or_path="deep",
        max_steps=1,
        output_dir="other",
    )
    capsys.readouterr()
    assert main(TRAIN) == 0
    assert note(workshop / "other")["layer_map"] == "1:2,2:4"
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "evenly spaced, for the student was cut to 3 of 4 blocks, and has 3 beside a teacher of 6"
        in said
    )


def test_a_cache_holds_the_depths_of_the_blocks(workshop):
    """Written without weights of the student; training from it is training with the teacher."""
    recipe(workshop, **BLOCKS, per_device_train_batch_size=1)
    assert main([*TRAIN, "--output_dir", "live"]) == 0
    assert main(["cache", "--config", "recipe.yaml", "--teacher_cache", "cache"]) == 0
    manifest = json.loads((workshop / "cache" / "manifest.json").read_text())
    assert manifest["depths"] == [1, 2]
    assert main([*TRAIN, "--teacher_cache", "cache"]) == 0
    assert toys.drift(weights(workshop / "live"), weights(workshop / "out")) == 0


def test_a_narrow_student_computes_as_its_files_do(workshop):
    """Frequencies of rotary embeddings are not saved: narrowed, they turn other angles."""
    teacher = toys.llama(4, 24, seed=1, positions=4096)
    teacher.save_pretrained(workshop / "teacher")
    args = SimpleNamespace(
        teacher_model_name_or_path=str(workshop / "teacher"),
        teacher_model_init_kwargs=None,
        trust_remote_code=False,
    )
    job = SimpleNamespace(student_config=None, student_blocks=[0, 3])
    model = SimpleNamespace(attn_implementation=None, dtype="bfloat16")
    student = load_student(job, model, args, None)
    student.save_pretrained(workshop / "cut")
    read = AutoModelForCausalLM.from_pretrained(workshop / "cut", dtype=torch.bfloat16)
    theirs = dict(read.named_buffers())
    assert theirs.keys() == dict(student.named_buffers()).keys()
    for name, buffer in student.named_buffers():
        assert buffer.dtype == theirs[name].dtype and torch.equal(buffer, theirs[name])
    ids = torch.arange(2000)[None] % 24
    assert torch.equal(student(ids).logits, read(ids).logits)


def test_the_files_have_the_teachers_dtype(workshop):
    """A teacher in bfloat16: the student trains in float32 and goes back, unless told otherwise."""
    toys.llama(4, 24, seed=1).to(torch.bfloat16).save_pretrained(workshop / "teacher")
    for name, flags, trained, saved in (
        ("a", [], torch.float32, torch.bfloat16),
        ("b", ["--dtype", "bfloat16"], torch.bfloat16, torch.bfloat16),
        ("c", ["--save_dtype", "float32"], torch.float32, torch.float32),
        (
            "d",
            ["--teacher_model_init_kwargs", '{"dtype": "float32"}'],
            torch.float32,
            torch.bfloat16,
        ),
    ):
        recipe(workshop, **BLOCKS, max_steps=1, save_steps=1, output_dir=name)
        assert main([*TRAIN, *flags]) == 0
        assert {t.dtype for t in weights(workshop / name).values()} == {saved}, name
        kept = weights(workshop / name / "checkpoint-1").values()
        assert {t.dtype for t in kept} == {trained}, name


def test_the_report_shows_the_student_before_and_after(workshop, monkeypatch):
    """Its start is cut out of the teacher again: the teacher's own logits without block 2."""
    pytest.importorskip("matplotlib")
    recipe(workshop, **BLOCKS)
    assert main(TRAIN) == 0
    seen, observe = {}, run_models.observe_models

    def spy(models, *args, **kwargs):
        with torch.no_grad():
            seen.update(
                {name: model(IDS, use_cache=False).logits for name, model in models.items()}
            )
        return observe(models, *args, **kwargs)

    monkeypatch.setattr(run_models, "observe_models", spy)
    assert main(["report", "out", "--limit", "1"]) == 0
    assert list(seen) == ["teacher", "start", "student"]
    assert torch.equal(seen["start"], truth("teacher", dropped=2))
    assert not torch.equal(seen["start"], seen["student"])
    page = (workshop / "out" / "report.html").read_text()
    assert "blocks 0, 1, 3 of teacher" in page and "left out" not in page


def test_blocks_of_an_adapters_teacher_are_merged(workshop):
    """A teacher that is a folder of LoRA: the start is the adapted teacher without the block."""
    recipe(
        workshop,
        model_name_or_path="teacher",
        teacher_model_name_or_path=None,
        cross_entropy_weight=1.0,
        use_peft=True,
        lora_target_modules="all-linear",
        lora_r=2,
        lora_dropout=0.0,
        output_dir="lora",
        learning_rate=0.1,
    )
    assert main(TRAIN) == 0
    recipe(workshop, **BLOCKS, teacher_model_name_or_path="lora", learning_rate=0.0, max_steps=1)
    assert main(TRAIN) == 0
    student = AutoModelForCausalLM.from_pretrained(workshop / "out")
    with torch.no_grad():
        found = student(IDS, use_cache=False).logits
    assert torch.allclose(found, truth("lora", dropped=2), atol=1e-4)
    assert not torch.allclose(found, truth("teacher", dropped=2), atol=1e-2)


BAD = {
    "beside a named student": (
        {"model_name_or_path": "student"},
        "name the student by either model_name_or_path (a folder or hub id), student_config "
        "(random weights) or student_blocks (blocks of the teacher), not by model_name_or_path and "
        "student_blocks",
    ),
    "beside random weights": (
        {"student_config": {"model_type": "gpt2"}},
        "not by student_config and student_blocks",
    ),
    "of no teacher": (
        {"teacher_model_name_or_path": None, "cross_entropy_weight": 1.0},
        "student_blocks needs teacher_model_name_or_path, whose blocks they are",
    ),
    "with LoRA": ({"use_peft": True}, "make a folder of them first (distilllens prune)"),
    "none": ({"student_blocks": 0}, "student_blocks must be at least 1 block, got 0"),
    "no list": ({"student_blocks": []}, "student_blocks []: write how many blocks to keep"),
    "too many": ({"student_blocks": 5}, "5 blocks cannot be kept: the model has 4"),
    "out of range": (
        {"student_blocks": [0, 4]},
        "block 4 does not exist: the model has blocks 0 to 3",
    ),
    "negative": ({"student_blocks": [-1, 2]}, "write how many blocks to keep, such as 6, or which"),
    "repeated": ({"student_blocks": [1, 1]}, "must rise, each once, but 1 is given twice"),
    "falling": ({"student_blocks": "2,1"}, "must rise, each once, but 1 follows 2"),
    "words": ({"student_blocks": "all"}, "student_blocks 'all': write how many blocks to keep"),
    "half": ({"student_blocks": 1.5}, "student_blocks must be a whole number, got 1.5"),
    "texts": ({"student_blocks": ["0", "2"]}, "must be a list of whole numbers, got '0' in it"),
    "one": (
        {"student_blocks": 1},
        "no pair of inner depths exists between 1 student and 4 teacher",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_blocks_that_are_refused(case, workshop, capsys):
    """One line and status 2; nothing is written."""
    changes, message = BAD[case]
    recipe(workshop, **BLOCKS | changes)
    assert main(TRAIN) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("distilllens: error: ") and message in said[-1]
    assert not (workshop / "out").exists()


def test_a_flag_takes_the_place_of_another_student(workshop):
    """--student_blocks instead of the student that the recipe names, and the other way about."""
    recipe(workshop, max_steps=1)
    assert main([*TRAIN, "--student_blocks", "2"]) == 0
    assert note(workshop / "out")["recipe"]["fields"]["student_blocks"] == 2
    recipe(workshop, **BLOCKS, max_steps=1, output_dir="named")
    assert main([*TRAIN, "--model_name_or_path", "student"]) == 0
    assert "student_blocks" not in note(workshop / "named")["recipe"]["fields"]
