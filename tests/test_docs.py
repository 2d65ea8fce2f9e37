"""Pages are true: commands, options, files, modules, Python, the navigation. And they are in plain words."""

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import clearmargin
from clearmargin.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "pipeline" / "clearmargin"
PAGES = [ROOT / "README.md", ROOT / "mlflow" / "README.md", *sorted(DOCS.rglob("*.md"))]
NAMES = {page: str(page.relative_to(ROOT)) for page in PAGES}


def blocks(page: Path) -> list[str]:
    """The lines of a page's code blocks, those that go on behind a backslash joined."""
    inside = re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(), re.M | re.S)
    lines = [line.strip() for block in inside for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if not line.startswith("clearmargin: ")]  # a message, not a command


def commands() -> list[tuple[str, str, bool]]:
    """Each call of the program: its page, what follows the program's name, and whether a user can type it as it is."""
    calls = []
    for page in PAGES:
        spans = re.findall(r"`(clearmargin [^`]+)`", page.read_text())
        for line, whole in [*((b, True) for b in blocks(page)), *((s, False) for s in spans)]:
            call = re.match(r"(?:torchrun \S+ \S+ -m clearmargin\.cli|clearmargin) (.*)", line, re.S)
            if call:
                calls.append((NAMES[page], " ".join(call[1].split()), whole))
    return calls


def verbs(command=None, name=""):
    """Each verb's name with its command, groups opened: ``data new``."""
    command = command or get_command(app)
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for key, value in inner.items():
        yield from verbs(value, f"{name} {key}".strip())


OPTIONS = {option for _, command in verbs() for param in command.params for option in param.opts}
OPTIONS |= {option for param in get_command(app).params for option in param.opts} | {"--help"}
OPTIONS |= {"--install-completion", "--show-completion"}


@pytest.mark.parametrize(("page", "line", "whole"), commands())
def test_a_command_on_a_page_is_one_of_the_programs(page, line, whole):
    words = shlex.split(line, comments=True)
    command, name = get_command(app), ""
    while words and words[0].startswith("-"):  # options of the program itself, before the verb
        assert words.pop(0).split("=")[0] in OPTIONS
    while words and words[0] in getattr(command, "commands", {}):
        name = words.pop(0)
        command = command.commands[name]
    if not name and (not words or words[0] in ("VERB", "predikt")):
        return  # options alone; any verb; one that is misspelled to show the message
    if hasattr(command, "default_command"):
        command = command.commands[command.default_command]
    assert name, f"{page}: no verb '{words[0]}'"
    options = {option for param in command.params for option in param.opts} | {"--help"}
    named = {word.split("=")[0] for word in words if word.startswith("--")}
    assert named <= options, f"{page}: `{name}` has no {', '.join(sorted(named - options))}"
    if whole and "[" not in line and page != "docs/troubleshooting.md":  # a synopsis is not typed
        command.make_context(name, words)  # types, choices, and how many arguments


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_options_that_a_page_names_exist(page):
    text = page.read_text()
    scripts = set(re.findall(r"benchmarks/\w+\.py", text)) | {"Makefile", ".ci/run"}
    # what a script understands, or hands on, is in its source
    others = "".join((ROOT / script).read_text() for script in scripts)
    others += "".join((ROOT / f).read_text() for f in re.findall(r"benchmarks/\w+\.py", others))
    foreign = {"--nproc-per-node", "--array"}  # of torchrun and of Slurm
    foreign |= {"--bundle", "--config", "--dataset", "--output"}  # of monai.bundle, before an underscore
    foreign |= {"--env-manager"}  # of mlflow models serve
    if page.parent.name == "mlflow":
        foreign |= {
            "--build",
            "--clean",
            "--dbname",
            "--detach",
            "--if-exists",
            "--rm",
            "--wait",
        }  # docker, pg_restore
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+(?![\w-])", text))
    unknown = {name for name in named - OPTIONS - foreign if name not in others}
    assert not unknown, f"no verb has {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_files_and_targets_that_a_page_names_exist(page):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for line in re.findall(r"`make ([^`]+)`", text) for name in line.split()[:1]}
    named |= {line.split()[1] for line in blocks(page) if line.startswith("make ")}
    assert named <= targets, named - targets
    files = set(
        re.findall(r"\b(?:tests|benchmarks|configs|data_cards|pipeline)/[\w/.-]+\.(?:py|yaml)\b", text)
    )
    missing = sorted(name for name in files if not (ROOT / name).exists())
    links = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
    missing += sorted(link for link in links if not (page.parent / link).exists())
    for name in set(re.findall(r"(?<![\w/.])([a-z_]+(?:/[a-z_0-9]+)*\.py)\b", text)):
        places = (PACKAGE, ROOT / "tests")
        if Path(name).stem != "x" and not any(file for place in places for file in place.rglob(name)):
            missing += [] if (ROOT / name).exists() else [name]
    for file, test in re.findall(r"(tests/[\w/]+\.py)::(\w+)", text):
        if f"def {test}(" not in (ROOT / file).read_text():
            missing.append(f"{file}::{test}")
    assert not missing, missing


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_modules_that_a_page_names_exist(page):
    missing = []
    for name in set(re.findall(r"\bclearmargin(?:\.\w+)+", page.read_text())):
        parts = name.split(".")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for last in range(len(parts), 0, -1):
                path = PACKAGE.joinpath(*parts[1:last])
                if path.is_dir() or path.with_suffix(".py").exists():
                    holder = importlib.import_module(".".join(parts[:last]))
                    break
            for part in parts[last:]:
                if not hasattr(holder, part):
                    missing.append(name)
                    break
                holder = getattr(holder, part)
    assert not missing, missing


def examples():
    for page in PAGES:
        for k, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)):
            yield pytest.param(block, id=f"{NAMES[page]}-{k}")


@pytest.mark.parametrize("block", list(examples()))
def test_python_on_a_page_imports_what_exists(block):
    tree = ast.parse(block)
    lines = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    space = {}
    exec(compile(ast.Module(body=lines, type_ignores=[]), "page", "exec"), space)
    for node in ast.walk(tree):  # cm.read_image and the like
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            holder = space.get(node.value.id)
            if holder is clearmargin:
                assert hasattr(clearmargin, node.attr), node.attr


def navigation(entry) -> list[tuple[str, str]]:
    """Titles and pages of the site's navigation, in order."""
    if isinstance(entry, str):
        return [("", entry)]
    if isinstance(entry, list):
        return [pair for item in entry for pair in navigation(item)]
    return [
        (title or inner, page)
        for title, value in entry.items()
        for inner, page in ([("", value)] if isinstance(value, str) else navigation(value))
        for title in [inner or title]
    ]


NAVIGATION = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])


def test_every_page_has_a_place_in_the_navigation():
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    listed = {page for _, page in NAVIGATION}
    assert pages == listed, f"add to nav in mkdocs.yml: {pages - listed}; not there: {listed - pages}"


def test_every_verb_has_a_page():
    titles = {word for title, _ in NAVIGATION for word in re.split(r"\W+", title)}
    assert {name.split()[0] for name, _ in verbs()} <= titles


def test_the_api_page_has_every_public_name():
    text = (DOCS / "api.md").read_text()
    objects = re.findall(r"^::: ([\w.]+)$", text, re.M)
    assert set(clearmargin.__all__) - {"__version__"} <= {name.split(".")[-1] for name in objects}


def test_the_glossary_names_places_that_exist():
    text = (DOCS / "glossary.md").read_text()
    places = re.findall(r"\| `([\w/]+(?:\.py)?/?)` \|$", text, re.M)
    assert len(places) > 60
    assert not [place for place in places if not (PACKAGE / place).exists()]
    terms = re.findall(r"^\| \*\*(.+?)\*\* \|", text, re.M)
    assert len(terms) == len(set(terms))


def test_the_figure_of_results_is_drawn_from_the_pages_tables(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    drawing = importlib.import_module("draw_results")
    curves = drawing.accuracies(DOCS / "lab" / "nuclei.md")
    assert len(curves) == 3 and all(
        [iou for iou, _ in line] == [0.5, 0.6, 0.7, 0.8, 0.9] for line in curves.values()
    )
    intervals = drawing.coverages(DOCS / "results.md")
    assert len(intervals) >= 4 and all(low <= value <= high for _, value, low, high in intervals)
    sys.modules.pop("draw_results", None)


_THINGS = "file|row|line|value|folder|record|number|mask|run|segment"
_SETS = "fit|test|new|training|calibration|margin|patient"
IDIOM = {
    "'is no X' for 'is not an X'": r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!longer\b|more\b|better\b)\w+",
    "'where' for 'if'": r"\bwhere (?:there|none|nothing|no) (?:is|are|was|were)\b|\bnone where\b|\bwhere none\b",
    "'a row a case' for 'a row per case'": rf"\b(?:a|one) (?:{_THINGS}) an? [a-z]+",
    "what was asked for": r"\b(?:was|were) asked for\b|\| asked for \|",
    "'spurious' for 'false positive'": r"\b[sS]purious\b",
    "'miss' as a noun": r"\b[mM]iss rate\b|\ba miss\b|\b[mM]isses and\b|, missed, ",
    "'unit' for 'group'": rf"\b(?:{_SETS}) units?\b|\bunits? of independence\b|\b(?:by|over|per) units?\b",
    "a past participle for a thing": r"\bwhat was (?:found|chosen|wanted|weighed)\b",
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_pages_are_in_plain_words(page):
    text = page.read_text()
    if page.name == "glossary.md":  # it lists words that are not used, and defines group
        text = text[: text.index("## Words that are not used")].replace("The unit of independence", "")
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    wrong = [f"{why}: ...{m[0]}..." for why, pattern in IDIOM.items() for m in re.finditer(pattern, text)]
    assert not wrong, wrong


def test_the_site_builds_without_a_warning_and_reads_without_a_network(tmp_path):
    pytest.importorskip("zensical", reason="the site needs pip install -e '.[docs]'")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copytree(
        PACKAGE, tmp_path / "pipeline" / "clearmargin", ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict", "--clean"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    built = {page: page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert len(built) > len(list(DOCS.rglob("*.md")))  # and the page for an address that is not there
    fetched = r"<(?:script|img|iframe|source)[^>]+src=\"?https?:|<link[^>]+rel=\"?(?:stylesheet|preconnect)[^>]+https?:"
    assert not [page.name for page, text in built.items() if re.search(fetched, text)]
    sheets = [sheet.read_text() for sheet in (tmp_path / "site").rglob("*.css")]
    assert sheets and not [
        sheet for sheet in sheets if re.search(r"(?:url\(|@import)\s*['\"]?https?:", sheet)
    ]
