"""The command line, run in this process: a new one would spend seconds on importing torch."""

import contextlib
import io
import sys

from clearmargin.cli import main


def command(*arguments):
    """Return the exit code and all that was said, on either stream."""
    said, code, before = io.StringIO(), 0, sys.argv
    sys.argv = ["clearmargin", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return code, said.getvalue()
