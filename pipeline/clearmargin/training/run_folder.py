"""A run's folder: its configuration, and the names by which it is found again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clearmargin.config import dump_yaml, read_yaml
from clearmargin.errors import ConfigError, InputError, nearest
from clearmargin.files import write_text
from clearmargin.training.experiment import Experiment, read_experiment
from clearmargin.training.processes import ProcessGroup

__all__ = ["CONFIG", "MODEL", "RUN", "new_folder", "open_folder", "write_config"]

MODEL, CONFIG, RUN = "model", "config.yaml", "run.yaml"


def open_folder(
    config: Path | Experiment | None,
    overrides: Sequence[str],
    resume: Path | str | None,
    runs: Path,
    group: ProcessGroup,
) -> tuple[Experiment, Path]:
    """Return the experiment and its run's folder; a new folder is made and holds the resolved configuration.

    Arguments as of ``train``, and the processes that share one folder.

    Raises:
        ConfigError: Neither a configuration nor a run is given, or both, or it does not fit.
        InputError: There is no such run.
    """
    if resume is not None:
        if config is not None:
            raise ConfigError(
                "give a configuration or --resume, not both: a run resumes with its own, and --set"
            )
        folder = _find_run(str(resume), runs)
        return read_experiment(folder / CONFIG, overrides), folder
    if config is None:
        raise ConfigError("give a configuration, or --resume and a run's folder")
    if isinstance(config, Experiment) and overrides:
        raise ValueError("overrides are for a YAML: change the experiment itself")
    experiment = config if isinstance(config, Experiment) else read_experiment(config, overrides)
    folder = group.shared(new_folder(runs, experiment.name) if group.rank == 0 else None)
    if group.rank == 0:
        write_config(folder, experiment)
    return experiment, folder


def _find_run(run: str, runs: Path) -> Path:
    """Return the folder of a run, given as that folder, as its name, or as its id in the tracking store."""
    for folder in (Path(run), runs / run):
        if (folder / CONFIG).is_file():
            return folder
    for known in runs.glob(f"*/{RUN}"):
        if read_yaml(known).get("run_id") == run:
            return known.parent
    names = [known.parent.name for known in runs.glob(f"*/{CONFIG}")]
    raise InputError(f"no run '{run}' under '{runs}': {nearest(run, names)}")


def new_folder(runs: Path, name: str) -> Path:
    """Make and return ``runs/name``, or ``name-2``, ... where that exists."""
    for count in range(1, 10_000):
        folder = runs / (name if count == 1 else f"{name}-{count}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"'{runs}' holds 10,000 runs called '{name}': choose another name")


def write_config(folder: Path, experiment: Experiment) -> None:
    """Write ``config.yaml``, complete."""
    write_text(folder / CONFIG, dump_yaml(experiment))
