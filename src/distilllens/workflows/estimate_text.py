"""An estimate as a table that people read."""

from __future__ import annotations

from distilllens.files import in_bytes
from distilllens.train.progress import duration


def table_of(found: dict) -> str:
    """The text of what ``estimate.estimate`` returns."""
    device, num = found["device"], found["num_devices"]
    many = f"{num} x " if num > 1 else ""
    rows = [
        ("device", f"{many}{device['title']}, {in_bytes(device['memory'])} of memory"),
        ("student", _student(found["student"])),
        ("teacher", "none" if found["teacher"] is None else _model(found["teacher"])),
        ("data", _data(found)),
        ("precision", found["precision"]),
        *_memory(found),
        ("time", _time(found)),
        ("disk", f"{found['disk']['words']}; {in_bytes(found['disk']['free'])} free"),
        *(("unknown", reason) for reason in found["unknown"]),
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join([*(f"{name:{width}}{text}" for name, text in rows), "", *_plans(found)])


def _student(student):
    part = student["trained"] < student["parameters"]
    return _model(student) + (f", {_count(student['trained'])} trained" if part else "")


def _model(model):
    several = f"{num} models, " if (num := model.get("models", 1)) > 1 else ""
    return f"{several}{_count(model['parameters'])} parameters, {in_bytes(model['bytes'])}"


def _count(num):
    return f"{num / 1e6:,.1f} M" if num >= 1e6 else f"{num:,}"


def _data(found):
    num, batch = found["rows"], found["batch"]
    rows = "rows of unknown number" if num is None else f"{num:,} rows"
    return (
        f"{rows}, {found['tokens_per_row']:g} tokens each, {found['targets_per_row']:g} targets; "
        f"batches of {batch['rows']} x {batch['mean_length']:g}, at most {batch['longest']}"
    )


def _memory(found):
    if (memory := found["memory"]) is None:
        return [("memory", "unknown")]
    parts = [(name, size) for name, size in memory.items() if name not in ("total", "available")]
    total, most = in_bytes(memory["total"]), found["largest_batch"]
    at_most = "no batch fits" if not most else f"batches of up to {most:,} rows fit"
    return [
        ("memory", f"{total} at the peak of a step; {at_most}"),
        *((f"  {name}", in_bytes(size)) for name, size in parts if size),
    ]


def _time(found):
    seconds, steps = found["seconds_per_step"], found["steps"]
    flops = sum(found["flops"].values())
    if steps is None:
        return f"{seconds:.3g} s a step of {flops:.3g} flops; the number of steps is not known"
    whole = duration(seconds * steps)
    return f"{seconds:.3g} s a step of {flops:.3g} flops, {steps:,} steps: {whole}"


def _plans(found):
    """The plans in columns."""
    if not found["plans"]:
        return []
    priced = found["price"] is not None
    lines = [["plan", "memory a device", "fits", "s a step", "hours", *["cost"] * priced]]
    for plan in found["plans"]:
        hours, cost = plan["hours"], plan["cost"]
        line = [plan["name"], in_bytes(plan["memory"]), "yes" if plan["fits"] else "no"]
        line += [f"{plan['seconds_per_step']:.3g}", "?" if hours is None else f"{hours:.3g}"]
        lines.append(line + (["?" if cost is None else f"{cost:,.2f}"] if priced else []))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
