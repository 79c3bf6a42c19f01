"""What runs inside the sandbox: limits itself, runs a program and its tests, and tells the verdict on a pipe of its own.

Given to the inner interpreter as text, so it imports the standard library only. Arguments: three descriptors (program as JSON,
token, verdict) and the limits (bytes of memory, CPU seconds, processes, bytes of a file).
"""

import json
import os
import resource
import sys


def main() -> None:
    """Run the program. The token is read only when the tests have returned: exit codes and output prove nothing."""
    source, token, verdict, memory, seconds, processes, size = map(int, sys.argv[1:8])
    read, write, leave, dumps = os.read, os.write, os._exit, json.dumps  # the program may replace these names
    with os.fdopen(source, encoding="utf-8") as file:
        program = json.load(file)
    sys.argv[:] = ["program"]
    for name, limit in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_FSIZE", size),
        ("RLIMIT_AS", memory),
    ):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (limit, limit))
    names = {"__name__": "program"}
    try:
        exec(compile(program["code"], "program", "exec"), names)
        exec(compile(program["test"], "test", "exec"), names)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the program's too
        told = {"detail": f"{type(error).__name__}: {error}"[:300]}
    else:
        told = {"token": read(token, 64).decode()}
    write(verdict, dumps(told).encode() + b"\n")
    leave(0)


main()
