"""What the pages tell a user to type is understood, and the files that they name are there."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from clearmargin.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    """The lines of a page's code blocks, those that go on behind a backslash joined."""
    inside = re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(), re.M | re.S)
    return [line.strip() for block in inside for line in block.replace("\\\n", " ").splitlines()]


def commands() -> list[tuple[str, str, bool]]:
    """Each call of the program: its page, what follows the program's name, and whether a user can type it as it is."""
    found = []
    for page in PAGES:
        spans = re.findall(r"`(clearmargin [^`]+)`", page.read_text())
        for line, whole in [*((b, True) for b in blocks(page)), *((s, False) for s in spans)]:
            call = re.match(r"(?:torchrun \S+ \S+ -m clearmargin\.cli|clearmargin) (.*)", line, re.S)
            if call:
                found.append((page.name, " ".join(call[1].split()), whole))
    return found


@pytest.mark.parametrize(("page", "line", "whole"), commands())
def test_a_command_on_a_page_is_one_of_the_programs(page, line, whole):
    words = shlex.split(line, comments=True)
    command, name = get_command(app), ""
    while words and words[0] in getattr(command, "commands", {}):
        name = words.pop(0)
        command = command.commands[name]
    if hasattr(command, "default_command"):
        command = command.commands[command.default_command]
    assert name, f"{page}: no verb '{words[0]}'"
    options = {option for param in command.params for option in param.opts} | {"--help"}
    named = {word.split("=")[0] for word in words if word.startswith("--")}
    assert named <= options, f"{page}: `{name}` has no {', '.join(sorted(named - options))}"
    if whole and "[" not in line:  # a synopsis is not typed
        command.make_context(name, words)  # types, choices, and how many arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_targets_that_a_page_names_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for line in re.findall(r"`make ([^`]+)`", text) for name in line.split()[:1]}
    named |= {line.split()[1] for line in blocks(page) if line.startswith("make ")}
    assert named <= targets, named - targets
    files = set(re.findall(r"\b(?:tests|benchmarks|configs|data_cards)/[\w/.-]+\.(?:py|yaml)\b", text))
    files |= {
        f"docs/{link}" if page.parent.name == "docs" else link
        for link in re.findall(r"\]\(([\w./-]+)\)", text)
    }
    missing = sorted(name for name in files if not (ROOT / name).exists())
    assert not missing, missing
