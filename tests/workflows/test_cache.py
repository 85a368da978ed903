"""``write_cache``: what ``distilllens cache`` does, called from Python."""

import shutil

import pytest
from workflows.test_train import arguments

from distilllens.teacher import CachedTeacher
from distilllens.workflows.cache import write_cache
from distilllens.workflows.train import run_job


def test_a_cache_without_the_command_line(workshop):
    """It holds every document, and a run needs no teacher then."""
    line = write_cache(*arguments(output_dir="unused", teacher_cache="cache"))
    assert line.startswith("the teacher cache cache holds 8 documents, ")
    assert CachedTeacher("cache").num_documents == 8
    shutil.rmtree(workshop / "teacher")
    run_job(*arguments(teacher_model_name_or_path=None, teacher_cache="cache"))
    assert (workshop / "out" / "model.safetensors").exists()


def test_a_cache_needs_a_folder(workshop):
    """The field is named."""
    with pytest.raises(ValueError, match="distilllens cache needs teacher_cache"):
        write_cache(*arguments(output_dir="unused"))
