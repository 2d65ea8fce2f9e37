"""Where the time of training steps goes, by operator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from clearmargin.files import write_text

__all__ = ["OPERATORS", "TRACE", "operator_profile"]

OPERATORS, TRACE = "operators.txt", "trace.json"
_WAIT, _WARMUP, _ACTIVE, _ROWS = 1, 2, 5, 30


@contextmanager
def operator_profile(folder: Path) -> Iterator[Any]:
    """Profile training steps 4 to 8 of the block; call ``step()`` of what is yielded after each step.

    Args:
        folder: Gets ``operators.txt``, a table of the costliest operators, and ``trace.json``, for
            chrome://tracing or ui.perfetto.dev. Nothing is written where the block has fewer steps.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)

    def write(profiler: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        first = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=first, row_limit=_ROWS)
        write_text(folder / OPERATORS, table + "\n")
        profiler.export_chrome_trace(str(folder / TRACE))

    schedule = torch.profiler.schedule(wait=_WAIT, warmup=_WARMUP, active=_ACTIVE, repeat=1)
    with torch.profiler.profile(activities=activities, schedule=schedule, on_trace_ready=write) as profiler:
        yield profiler
