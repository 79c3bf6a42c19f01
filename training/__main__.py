"""One process of a run, as the deepspeed launcher starts it, and `python -m training`, which is `ziya-train`.

`ziya-train` starts its ranks as `-m training --launched RUN/launch/launch.json`. A bare

    deepspeed --num_gpus 8 --module training --stage 1 --config CONFIG [key=value ...]

works too: each rank parses the config, rank 0 makes the checks that `ziya-train` makes before it launches, and SIGTERM or
Ctrl-C to the ranks saves and ends. Its limits: a signal sent to the `deepspeed` command alone ends that command and leaves
its ranks to train on; deepspeed's launcher kills ranks that have not saved 30 seconds after its own SIGTERM; a rank that is
killed is noticed by the launcher only, which ends the others one after another; nobody prints one message for all ranks, each
one's lies in RUN/errors; `--processes`, `launch.*` and the exit codes of `ziya-train` do not apply.
"""

from __future__ import annotations

import os
import sys


def main() -> int:
    """A rank where a launcher says so, else the command."""
    if "--launched" in sys.argv or ("RANK" in os.environ and "LOCAL_RANK" in os.environ):
        from training.rank import main as run_rank

        return run_rank(sys.argv[1:])
    from training.cli import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
