"""What configurations and tokenizer files tell of a run's models, before weights are read."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from itertools import islice

from distilllens.data.encode import encode_example
from distilllens.loading import check_tokenizers, find_tokenizer
from distilllens.train.teacher_fields import each_alone
from distilllens.train.teachers import of_entry, tokenizers_advised
from distilllens.workflows import students
from distilllens.workflows.identity import check_depths, maps_by_names, teacher_config_of

logger = logging.getLogger(__name__)
_MOST_ROWS = 256
# Of teacher_model_init_kwargs: what makes another model of the same weights.
_OTHER_WEIGHTS = ("quantization_config", "load_in_4bit", "load_in_8bit")


def check_named_models(job, model, args):
    """Load the student's tokenizer and configuration, and check them as ``check_models`` does.

    Raises:
        ValueError: as ``check_models``, or one of them cannot be loaded.
    """
    args = students.with_student_settings(job, model, args)
    tokenizer = students.load_student_tokenizer(job, model, args)
    config = students.load_student_config(job, model, args, tokenizer)
    check_models(args, config, students.as_trained(tokenizer, args))


def check_models(args, config, tokenizer):
    """Refuse models of which no weights are needed to know that they do not fit each other.

    Args:
        config: the student's.
        tokenizer: the student's, as it is trained.

    Raises:
        ValueError: depths or weights of pairs that the models do not have; another tokenizer.
    """
    check_depths(args, config)
    if args.cross_tokenizer is not None:
        return
    if args.teachers is None:
        with tokenizers_advised():
            _check_tokenizer(args, tokenizer)
        return
    for number, alone in enumerate(each_alone(args), 1):
        with of_entry(number, alone.teacher_model_name_or_path):
            _check_tokenizer(alone, tokenizer)


def _check_tokenizer(args, tokenizer):
    if not (name := args.teacher_model_name_or_path):
        return
    given = args.teacher_model_init_kwargs or {}
    hub = {key: given[key] for key in ("revision", "trust_remote_code") if key in given}
    settings = {"trust_remote_code": args.trust_remote_code, **hub}
    if (theirs := find_tokenizer("teacher", name, **settings)) is not None:
        check_tokenizers(tokenizer, theirs)


def check_embeddings(args, config, tokenizer, examples: Iterable[Mapping]):
    """Refuse data whose first rows hold a token that a model has no embedding for.

    Args:
        config: the student's.
        examples: of the training data.

    Raises:
        ValueError: with the token and the number of embeddings.
    """
    sizes = [("student", _num_embeddings(config))]
    if args.chat_template_path:  # the tokens that come with its tokenizer get embeddings
        sizes = [("student", max(sizes[0][1], len(tokenizer)))]
    if args.cross_tokenizer is None and args.teacher_model_name_or_path:
        sizes.append(("teacher", _num_embeddings(teacher_config_of(args))))
    numbers = tokenizer.get_vocab().values()
    few = [(who, size) for who, size in sizes if size <= max(numbers)]
    if not few:
        return
    for example in islice(examples, _MOST_ROWS):
        ids, _ = encode_example(example, tokenizer, args.max_length)
        if args.max_length is not None and len(ids) > args.max_length:
            continue  # where it is cut, TRL decides
        largest = max(ids, default=0)
        for who, size in few:
            if largest >= size:
                raise ValueError(
                    f"the data hold token {largest}, but the {who} has only {size} embeddings: "
                    "its tokenizer is another one"
                )


def _num_embeddings(config):
    """By a configuration; as good as infinite where it tells none."""
    return getattr(config.get_text_config(), "vocab_size", None) or 2**62


def note_on_same_models(model, args, config, identities: Mapping[str, Mapping]) -> str | None:
    """A warning of a loss that is 0 from the start because all teachers are the student; or None.

    Args:
        model: a ``trl.ModelConfig``: the student.
        config: the student's.
        identities: role -> fingerprint.
    """
    teachers = [found for role, found in identities.items() if role.startswith("teacher")]
    if not teachers or any(found != identities["student"] for found in teachers):
        return None
    if args.cross_entropy_weight > 0 or args.neftune_noise_alpha:
        return None
    if model.load_in_4bit or model.load_in_8bit:
        return None
    entries = args.teachers or [{"model_init_kwargs": None}]
    given = [entry["model_init_kwargs"] or args.teacher_model_init_kwargs for entry in entries]
    if any(each and {*each} & {*_OTHER_WEIGHTS} for each in given):
        return None
    pairs = [pair for each in maps_by_names(args, config) for pair in each]
    reads_pairs = args.lens_weight > 0 or args.feature_weight > 0
    if reads_pairs and any(ours != theirs for ours, theirs in pairs):
        return None  # a deep exit teaches a shallow one
    return (
        f"student and teacher are the same model ({model.model_name_or_path}): their losses are 0 "
        "from the start, up to dropout and rounding, and there is nothing to learn from them"
    )
