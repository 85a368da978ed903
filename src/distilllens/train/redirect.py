"""Run a loss inside the forward of whatever wraps the model (DDP, FSDP2, DeepSpeed)."""

from __future__ import annotations


def run_inside_forward(wrapper, inner, method, **inputs):
    """``method(**inputs)``, called where ``wrapper(**inputs)`` would call ``inner.forward``.

    Wrappers gather weights before the forward of the wrapped module, and prepare the reduction of
    its gradients from what it returns. A loss that reads states and head weights must run between
    the two. The stand-in is removed before ``method`` starts, so ``method`` may call ``inner``.
    """
    restore = _restorer(inner)

    def stand_in(*args, **kwargs):
        restore()
        return method(*args, **kwargs)

    inner.forward = stand_in
    try:
        return wrapper(**inputs)
    finally:
        restore()


def _restorer(inner):
    own = inner.__dict__.get("forward")  # accelerate sets its autocast here

    def restore():
        if own is None:
            inner.__dict__.pop("forward", None)
        else:
            inner.forward = own

    return restore
