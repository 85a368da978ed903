"""``distilllens estimate``: what a training run takes, from its recipe and configurations alone."""

from __future__ import annotations

import json

from distilllens.cli import CommandParser, add_flags
from distilllens.cli.terminal import quiet_libraries
from distilllens.cli.train import processes_in, read_arguments
from distilllens.cli.train_flags import flag_name, split_flags
from distilllens.workflows.estimate_devices import check_options
from distilllens.workflows.train_checks import check_files

_DESCRIPTION = """\
Estimate the memory, time, disk and cost of a training run before it starts: from its recipe, the
configurations of the models and its data. No weights are read.

  --device NAME      h100, h200, a100-80gb, a100-40gb, l40s, rtx4090, a10g, t4 or cpu
                     (default: this machine, on which a matrix product is timed)
  --num_devices N    devices that train together (default: num_processes, or 1)
  --price PRICE      of a device for an hour, in any currency
  --json             print JSON instead of a table

examples:
  distilllens estimate --config recipe.yaml
  distilllens estimate --config recipe.yaml --device h100 --num_devices 8 --price 2.5
  distilllens estimate --config recipe.yaml --per_device_train_batch_size 32 --json

The other flags are those of distilllens train.
"""
_FLAGS = (
    ("device", str, "NAME", ""),
    ("num_devices", 1, "N", ""),
    ("price", float, "PRICE", ""),
    ("json", bool, None, ""),
)


def main(argv: list[str]) -> int:
    """Run the command; raises ValueError for bad input."""
    names, own, others = [name for name, *_ in _FLAGS], [], []
    for group in split_flags(argv):
        (own if flag_name(group) in names else others).extend(group)
    parser = CommandParser(prog="distilllens estimate")
    add_flags(parser, _FLAGS)
    number, others = processes_in(others, "estimate")
    if number is not None and "num_devices" not in map(flag_name, split_flags(own)):
        own = [*own, "--num_devices", str(number)]
    options = parser.parse_args(own)

    def check(values):
        check_options(options.device, options.num_devices, options.price)
        check_files(values)

    arguments = read_arguments(others, "estimate", _DESCRIPTION, check=check)
    if arguments is None:
        return 0
    from distilllens.workflows.estimate import estimate
    from distilllens.workflows.estimate_text import table_of

    quiet_libraries()
    settings = {name: getattr(options, name) for name in ("device", "num_devices", "price")}
    found = estimate(*arguments, **settings)
    print(json.dumps(found, indent=2) if options.json else table_of(found))
    return 0
