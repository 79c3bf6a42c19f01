"""Errors that a user can act on: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the user's input: says what was found, what is needed and what to change, in one line."""


def run_main(main: Callable[[], int]) -> int:
    """Run a command; turn a `UserError` into one line on stderr and exit code 2, Ctrl-C into 130.

    Everything else is a bug of ours and keeps its traceback.
    """
    try:
        return main()
    except UserError as error:
        print(f"error: {' '.join(str(error).split()) if chr(10) not in str(error) else error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished work is kept; run the same command again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `ziya-data rules | head` closes our output early: not an error
        sys.stderr.close()
        return 0
