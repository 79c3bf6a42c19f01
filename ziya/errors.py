"""Errors that a user can act on: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

# What a mistyped or unusable path raises, with what to do about it. Other OSErrors (network, broken disks) keep their traceback.
_PATHS = {
    errno.ENOENT: "no such file or folder: give the path of one that is there",
    errno.ENOTDIR: "a part of this path is a file, not a folder: give another path",
    errno.EEXIST: "it is there already, and not what is needed: give another path",
    errno.EISDIR: "it is a folder, a file is needed: give another path",
    errno.EACCES: "no permission: give another path, or change its rights",
    errno.EPERM: "no permission: give another path, or change its rights",
    errno.EROFS: "it lies on a disk that can only be read: give another path",
    errno.ENAMETOOLONG: "the name is too long: give a shorter one",
    errno.ENOSPC: "no space left on the disk: free some, then run the same command again",
}


class UserError(Exception):
    """A mistake in the user's input: says what was found, what is needed and what to change, in one line."""


def run_main(main: Callable[[], int]) -> int:
    """Run a command; turn a `UserError`, and a path that cannot be used, into one line on stderr and exit code 2, Ctrl-C into 130.

    Everything else is a bug of ours and keeps its traceback; ZIYA_TRACEBACK=1 shows that of a path too.
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
    except OSError as error:
        if error.errno not in _PATHS or error.filename is None:
            raise
        if os.environ.get("ZIYA_TRACEBACK"):
            traceback.print_exc()
        print(f"error: {os.fsdecode(error.filename)}: {_PATHS[error.errno]}", file=sys.stderr)
        return 2
