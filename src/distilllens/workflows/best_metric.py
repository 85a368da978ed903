"""Which metric of an evaluation decides the best checkpoint, and that it is measured."""

from __future__ import annotations

from distilllens.loss_terms import TERMS
from distilllens.train.config import HIGHER_IS_BETTER
from distilllens.train.metrics import SEEN

_METRICS = ("loss", *sorted(term.log_name for term in TERMS), *SEEN)


def check_evaluation(job, args):
    """Refuse evaluations without data, and a metric_for_best_model that no run measures.

    Raises:
        ValueError: with what is missing, or the metrics that are known.
    """
    strategy = str(getattr(args.eval_strategy, "value", args.eval_strategy))
    named = (job.eval_file, job.dataset_test_split, job.test_split_size)
    if (strategy != "no" or args.eval_on_start) and not any(named):
        who = "eval_generate" if args.eval_generate else f"eval_strategy {strategy}"
        who = "eval_on_start" if strategy == "no" else who
        raise ValueError(f"{who} needs eval_file or dataset_test_split: the data to evaluate on")
    name = (args.metric_for_best_model or "loss").removeprefix("eval_")
    absent = {t.log_name for t in TERMS if t.optional and not getattr(args, t.weight_field)}
    known = tuple(each for each in _METRICS if each not in absent)
    known += HIGHER_IS_BETTER if args.eval_generate else ()
    pairs = tuple(f"{t.log_name}/" for t in TERMS if t.has_pairs and t.log_name in known)
    if name not in known and not name.startswith(pairs):
        hint = "; it needs eval_generate" if name in HIGHER_IS_BETTER else ""
        raise ValueError(
            f"metric_for_best_model {name!r} is never measured{hint}; "
            f"known: {', '.join(known)}, lens_loss/1:2 and so on"
        )


def check_measured(trainer):
    """Refuse a metric_for_best_model that an evaluation of these models does not measure.

    Only now are the pairs known, and whether there is a teacher.

    Raises:
        ValueError: with the pairs that there are.
    """
    objective, taught = trainer.objective, trainer.teacher is not None
    maps = {
        "lens_loss": objective.layer_map if taught and objective.needs_lens(True) else None,
        "feature_loss": objective.feature_map if taught and objective.needs_features() else None,
    }
    name = (trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
    term, _, pair = name.partition("/")
    known = [f"{s}:{t}" for s, t in maps.get(term) or ()]
    if (term == "output_loss" and not taught) or (term in maps and not known):
        raise ValueError(
            f"metric_for_best_model {name!r} is never measured: this run has no {term}"
        )
    if pair and pair not in known:
        raise ValueError(
            f"metric_for_best_model {name!r} is never measured: the pairs are {', '.join(known)}"
        )
