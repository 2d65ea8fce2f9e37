"""What a run was made with: the code's git state and the installed packages, without who or where."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

__all__ = ["environment_text", "git_tags", "software"]


def software() -> str:
    """Return ``clearmargin`` and its version, as provenance names it."""
    from clearmargin import __version__

    return f"clearmargin {__version__}"


def git_tags() -> dict[str, str]:
    """Return the commit this package runs from and whether its files differ from it.

    Empty where the package is not a git checkout, as when it was installed from a wheel.
    """
    here = Path(__file__).resolve()
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return {}
    commit = _git(here.parent, "rev-parse", "HEAD")
    changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return {}
    return {"mlflow.source.git.commit": commit.strip(), "git.dirty": str(bool(changes.strip())).lower()}


def environment_text() -> str:
    """Return the interpreter, the platform and every installed package with its version, one a line."""
    packages = sorted(
        {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}.items()
    )
    lines = [
        f"# {software()}",
        f"# Python {platform.python_version()} ({platform.python_implementation()})",
        f"# {platform.system()} {platform.machine()}",
        *(f"{name}=={version}" for name, version in packages if name),
    ]
    return "\n".join(lines) + "\n"


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git prints, or None if there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
