"""Which methods of a study share a teacher cache, and which have none."""

import logging

import pytest

from distilllens.workflows.study.caches import SharedCaches
from distilllens.workflows.study.matrix import Study
from distilllens.workflows.study.runs import Folders
from distilllens.workflows.study.terms import Terms

BASE = {
    "model_name_or_path": "student",
    "teacher_model_name_or_path": "teacher",
    "train_file": ["train.jsonl"],
    "use_cpu": True,
    "report_to": "none",
}


def study(**more):
    """Plain KD, and KD on the student's own answers."""
    methods = {"kd": {"lens_weight": 0.0}, "on-policy": {"on_policy_fraction": 0.5}}
    return Study("study.yaml", BASE, methods, {name: (1,) for name in methods}, "kd", **more)


def test_no_cache_holds_what_a_student_will_write(workshop, caplog):
    """An on-policy method runs its teacher beside the student; the others share theirs."""
    with caplog.at_level(logging.WARNING):
        caches = SharedCaches(study(), Folders(workshop / "out"))
    assert caches.of("kd") is not None and caches.of("on-policy") is None
    assert "methods with on_policy_fraction run their teacher beside the student" in caplog.text


def test_flops_that_are_not_counted_make_nothing_equal(workshop):
    """Seconds and steps do."""
    folders = Folders(workshop / "out")
    for equal in ("steps", "seconds"):
        Terms(study(equal=equal), folders)
    with pytest.raises(ValueError, match=r"does not go with on_policy_fraction \(method on-policy"):
        Terms(study(equal="flops"), folders)
