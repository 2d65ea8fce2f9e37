"""The command line: a verb parses, makes one call, prints what came of it, and ends with a code.

Nothing heavy is imported here at the top, so that ``--help`` answers at once. A file per group of verbs; they stand in
the help in the order in which they are imported here.
"""

from clearmargin.cli import data, models, results, tables, batch, listening, runs  # noqa: F401 isort: skip - for their verbs, in the help's order
from clearmargin.cli.app import app, main

__all__ = ["app", "main"]
