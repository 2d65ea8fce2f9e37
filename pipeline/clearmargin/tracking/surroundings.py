"""What a run was made with: the code's git state and the installed packages, without who or where."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import subprocess
from pathlib import Path

__all__ = ["changed_code", "environment_text", "git_tags", "hardware", "packages", "software"]

_MOST_DIFF = 200_000  # characters
_SECRET = re.compile(
    r"-----BEGIN|AKIA[0-9A-Z]{16}|(?i:(password|passwd|secret|token|api[_-]?key)\s*[=:]\s*[\"'][^\"'\s]{6,})"
    r"|://[^/\s:@]+:[^/\s:@]+@|/home/|/Users/|[\w.+-]+@[\w-]+\.\w{2,}|[A-Za-z]+\^[A-Za-z]+"
)


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


def packages() -> dict[str, str]:
    """Return every installed package with its version."""
    versions = {(d.metadata["Name"] or "").lower(): d.version for d in importlib.metadata.distributions()}
    return {name: versions[name] for name in sorted(versions) if name}


def hardware() -> dict[str, str]:
    """Return what computes: processor kind and capability, threads, and the graphics card; no host's name."""
    import torch

    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "machine": platform.machine(),
        "cpu": str(torch.backends.cpu.get_cpu_capability()),
        "threads": str(torch.get_num_threads()),
        "gpu": card,
        "python": platform.python_version(),
    }


def changed_code() -> str:
    """Return how the package's checkout differs from its commit, as a diff; empty for a clean one, or none.

    A diff over 200,000 characters is cut off. One that holds what looks like a secret, an address, a home folder
    or a patient's name (``Doe^Jane``) in an added or removed line is left out as a whole; both are said.
    """
    here = Path(__file__).resolve().parents[1]
    if not git_tags():
        return ""
    diff = _git(here, "diff", "HEAD", "--no-color", "--no-ext-diff", "--", str(here)) or ""
    changed = [line for line in diff.splitlines() if line.startswith(("+", "-"))]
    if any(_SECRET.search(line) for line in changed):
        return (
            f"# left out: {len(changed)} changed lines, one of which looks like a secret or names somebody\n"
        )
    return diff if len(diff) <= _MOST_DIFF else diff[:_MOST_DIFF] + "\n# cut off here\n"


def environment_text() -> str:
    """Return the interpreter, the platform and every installed package with its version, one a line."""
    lines = [
        f"# {software()}",
        f"# Python {platform.python_version()} ({platform.python_implementation()})",
        f"# {platform.system()} {platform.machine()}",
        *(f"{name}=={version}" for name, version in packages().items()),
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
