"""What runs inside the sandbox: limits itself, runs a program and its tests, and tells the verdict on a pipe of its own.

Given to the inner interpreter as text, so it imports the standard library only. Arguments: three descriptors (program as JSON,
token behind a mask, verdict) and the limits (bytes of memory, CPU seconds, processes, bytes of a file).
"""

import json
import os
import resource
import sys

FILES = 64  # open descriptors: pipes and deleted files hold memory too


def main() -> None:
    """Run the program. The token is read only when the tests have returned: exit codes and output prove nothing."""
    source, token, verdict, memory, seconds, processes, size = map(int, sys.argv[1:8])
    # The program may replace these names.
    read, write, leave, dumps, build, run, join = os.read, os.write, os._exit, json.dumps, compile, exec, zip
    with os.fdopen(source, encoding="utf-8") as file:
        program = json.load(file)
    sys.argv[:] = ["program"]
    for name, limit in (
        ("RLIMIT_CORE", 0),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_FSIZE", size),
        ("RLIMIT_NOFILE", FILES),
        ("RLIMIT_AS", memory),
    ):
        if hasattr(resource, name):
            resource.setrlimit(getattr(resource, name), (limit, limit))
    mask, names = bytes.fromhex(program["mask"]), {"__name__": "program"}
    try:
        run(build(program["code"], "program", "exec"), names)
        run(build(program["test"], "test", "exec"), names)
    except BaseException as error:  # SystemExit and KeyboardInterrupt are the program's too
        told = {"detail": f"{type(error).__name__}: {error}"[:300]}
    else:
        told = {"token": bytes(a ^ b for a, b in join(read(token, 64), mask)).decode()}
    write(verdict, dumps(told).encode() + b"\n")
    leave(0)


main()
