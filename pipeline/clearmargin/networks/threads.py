"""How many threads torch computes with, for a while."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from clearmargin.errors import ConfigError

__all__ = ["refuse_forked", "torch_threads"]

_computed = False  # with torch, in this process
_orphaned = (
    False  # forked from one that had: its threads were not forked with it, and waiting for them has no end
)


def _note_fork() -> None:
    global _orphaned  # noqa: PLW0603 - a property of the process
    _orphaned = _computed


os.register_at_fork(after_in_child=_note_fork)


def refuse_forked() -> None:
    """Note that this process computes with torch.

    Raises:
        ConfigError: It was forked from one that had done so: it would wait for ever.
    """
    global _computed  # noqa: PLW0603 - a property of the process
    if _orphaned:
        raise ConfigError(
            "this process was forked from one that had a model at work, whose threads it lacks: start it with "
            "multiprocessing.get_context('spawn'), or fork before the model is loaded"
        )
    _computed = True


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with ``count`` threads, or as many as now, within a block; with as many as before behind it."""
    before = torch.get_num_threads()
    if count is not None and count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
