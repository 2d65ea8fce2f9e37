"""What holds of the package as a whole, read from its source: who imports whom, and what files are called."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1] / "pipeline" / "clearmargin"

# From the bottom up; a room imports from rooms before it. What stands in docs/design.md.
ROOMS = (
    "errors",
    "core",
    "compiled memory files",
    "config privacy",
    "failures",
    "metrics",
    "formats",
    "deidentification",
    "transforms",
    "linking",
    "networks",
    "models",
    "sampling",
    "margins",
    "datasets",
    "tracking",
    "report",
    "outputs",
    "pacs",
    "jobs",
    "predicting",
    "training",
    "verbs",
    "cli",
)
RANK = {name: rank for rank, line in enumerate(ROOMS) for name in line.split()}


def module_of(file):
    return ".".join(("clearmargin", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module_of(file): file for file in ROOT.rglob("*.py")}


def imports(file, *, everywhere):
    """Modules of the package that a file imports: everywhere, or as soon as it is imported itself."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("clearmargin"):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module


def room_of(module):
    parts = module.split(".")
    if len(parts) == 1:
        return None  # the package's own front page
    return parts[1] if parts[1] in RANK else "verbs"


def test_imports_point_down():
    wrong = []
    for module, file in MODULES.items():
        for other in imports(file, everywhere=True):
            here, there = room_of(module), room_of(other)
            if here != there and None not in (here, there) and RANK[there] >= RANK[here]:
                wrong.append(f"{module} imports {other}")
    assert not wrong


def test_no_imports_in_a_circle():
    graph = {module: set(imports(file, everywhere=False)) - {module} for module, file in MODULES.items()}
    done, circles = set(), []

    def walk(module, path):
        if module in path:
            circles.append([*path[path.index(module) :], module])
        elif module not in done:
            for other in sorted(graph.get(module, ())):
                walk(other, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])
    assert not circles


def test_json_of_files_is_parsed_in_one_place():
    """``json.loads`` ends as a RecursionError on JSON that nests deep; the ledger holds what we wrote ourselves."""
    own = {"files.py", "config.py", "ledger.py", "items.py", "review.py"}
    bare = [
        f"{module}:{node.lineno}"
        for module, file in MODULES.items()
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("json.loads", "json.load")
        and file.name not in own
    ]
    assert not bare


def test_no_file_is_called_like_a_module_of_the_standard_library():
    """Running any file of its folder as a script would import it in that module's place."""
    assert not [str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if f.stem in sys.stdlib_module_names]


def names_of_modules(file):
    """Modules that a file imports anywhere, or names in a table of what is loaded when it is used."""
    yield from imports(file, everywhere=True)
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value.split(":")[0]
            yield from (
                m for m in (name, f"clearmargin.{name}", f"clearmargin.formats.{name}") if m in MODULES
            )


def test_every_module_is_reached_from_a_verb_or_the_public_api():
    started_elsewhere = {
        "clearmargin.cli.__main__",  # python -m clearmargin.cli
        "clearmargin.tracking.pyfunc_model",  # MLflow's loader runs it as a script
        "clearmargin.tracking.records",  # by the line above
    }
    reached, waiting = set(), ["clearmargin.cli", "clearmargin"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [m for m in names_of_modules(MODULES[module]) if m in MODULES]
            waiting += [module.rpartition(".")[0]] if "." in module else []
    assert set(MODULES) - reached - started_elsewhere == set()


def test_what_a_module_offers_is_used_by_another_or_documented():
    """A name in ``__all__`` that nothing else in the package uses is in the docs, or it is not offered."""
    source = {module: file.read_text() for module, file in MODULES.items()}
    words = {module: set(re.findall(r"\w+", text)) for module, text in source.items()}
    documented = set(
        re.findall(r"\w+", "".join(p.read_text() for p in (ROOT.parents[1] / "docs").rglob("*.md")))
    )
    unused = []
    for module, text in source.items():
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                for name in ast.walk(node.value):
                    if isinstance(name, ast.Constant) and name.value not in documented:
                        own = len(re.findall(rf"\b{name.value}\b", text)) > 2
                        if not own and not any(
                            name.value in words[other] for other in words if other != module
                        ):
                            unused.append(f"{module}.{name.value}")
    assert not unused
