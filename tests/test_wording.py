"""The words that people read: help texts, error messages and the first lines of docstrings, read from the source."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pipeline" / "clearmargin"
TREES = {file.relative_to(ROOT).as_posix(): ast.parse(file.read_text()) for file in ROOT.rglob("*.py")}

# What was said in place of plain words, and what to say.
IDIOMS = {
    r"(?<![Tt]here )\b(is|are|was|were) no (?!longer|more|less|place|file|folder|label|index)[a-z]": "is not a",
    r"\bwhere there (is|are|was|were)\b": "if there is",
    r"\bwhere (nothing|none|nobody) ": "if nothing",
    r"\bspurious\b": "false positive",
    r"\b(one|a) \w+ (a|an) (file|case|image|class|pixel|verb|row|line|series|object)\b(?!,)": "per",
    r"\b(it|they) (is|are) none\b": "is not a ...",
    r"\bunits? of (independence|exchangeability)\b": "group",
    r"^(Of|At|In which|That|Whose) (the|each|all|its|which)\b": "a noun first",
}
BUILT_IN = {
    "ValueError",
    "TypeError",
    "AttributeError",
    "KeyError",
    "RuntimeError",
    "NotImplementedError",
    "AssertionError",
}
# A value is called by what it is: an evaluation, numbers, cases, columns; not by what was done to it.
PARTICIPLES = {"found", "chosen", "wanted"}
# Their callers put the case, the file or the archive in front.
NAMED_BY_THE_CALLER = (
    "formats/", "deidentification/", "pacs/", "metrics/", "jobs/", "selecting.py",
    "datasets/cases.py", "datasets/clips.py", "datasets/pairs.py",
    "predicting/discovery.py", "predicting/archived.py", "predicting/worklisted.py",
)  # fmt: skip


def text_of(node):
    """A message as it stands in the source, ``{}`` for each value; None for one that is built elsewhere."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in parts)
        case ast.BinOp(left=left, right=right):
            texts = text_of(left), text_of(right)
            return None if None in texts else "".join(texts)
    return None


def messages():
    """Where each error of the user's is raised, and what it says."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = text_of(node.exc.args[0])
                if text and ast.unparse(node.exc.func) not in BUILT_IN:
                    yield f"{name}:{node.lineno}", text


def helps():
    """What each option and setting says of itself."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                for word in node.keywords:
                    text = text_of(word.value)
                    if text and (
                        word.arg == "help" or (word.arg == "description" and called.endswith("Field"))
                    ):
                        yield f"{name}:{node.lineno}", text


def summaries():
    """The first line of each docstring."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text:
                    yield f"{name}:{getattr(node, 'lineno', 1)}", text.splitlines()[0]


@pytest.mark.parametrize("source", [messages, helps, summaries])
def test_plain_words(source):
    bad = [
        f"{place}: {text!r}: say {better!r}"
        for place, text in source()
        for idiom, better in IDIOMS.items()
        if re.search(idiom, text)
    ]
    assert not bad, "\n".join(bad)


def test_every_option_is_described_by_a_noun_or_a_verb():
    """Not by a question: 'What to measure', 'Which split', 'How many'."""
    bad = [
        f"{place}: {text!r}"
        for place, text in helps()
        if re.match(r"(?i)(of|what|which|how|where|that|in which|from which|at which) ", text)
    ]
    assert not bad, "\n".join(bad)


def test_every_message_names_a_thing():
    """A value, an option, a setting, a function or a file: something to look for."""
    bad = [
        f"{place}: {text!r}"
        for place, text in messages()
        if not place.startswith(NAMED_BY_THE_CALLER)
        and not re.search(r"\{\}|--[a-z]|`|'[^']+'|\w\.\w|\w_\w|\b[A-Z]{2,}\b|expected", text)
    ]
    assert not bad, "\n".join(bad)


def participles(tree):
    """Names and lines of the participles that a function assigns to, loops over or takes."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for function in (node for node in ast.walk(tree) if isinstance(node, functions)):
        for node in ast.walk(function):
            match node:
                case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) if name in PARTICIPLES:
                    yield node.lineno, name


def test_no_variable_is_called_by_a_participle():
    """Not `found = evaluate(...)`: `evaluation = evaluate(...)`."""
    places = {name: sorted(set(participles(tree))) for name, tree in TREES.items()}
    bad = [
        f"{name}:{line}: {word!r}: say what it holds"
        for name, lines in places.items()
        for line, word in lines
    ]
    assert not bad, "\n".join(bad)


def test_the_participles_are_seen_in_every_kind_of_assignment():
    source = (
        "class A:\n    chosen: str\n"
        "def f(wanted, *, b=lambda chosen: 1):\n"
        "    found = found_by = a.found = g(found=1)\n"
        "    for wanted, c in d: pass\n"
        "    with e as found: pass\n"
        "    return [(chosen := i) for found in wanted]\n"
    )
    assert sorted(participles(ast.parse(source))) == [
        (3, "chosen"), (3, "chosen"), (3, "wanted"), (4, "found"), (5, "wanted"), (6, "found"), (7, "chosen"),
        (7, "found"),
    ]  # fmt: skip


def test_the_readers_find_what_they_read():
    """Were a pattern above to match nothing, the tests would say nothing."""
    assert len(list(messages())) > 500 and len(list(helps())) > 250 and len(list(summaries())) > 2000
    assert text_of(ast.parse("f'x {1} y'").body[0].value) == "x {} y"
