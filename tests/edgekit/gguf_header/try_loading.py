"""Loads each file named on the command line in a process of its own and prints what became of it as JSON.

The library is loaded once and forked for every file. Outcomes: "ok", "refused", or the name of a signal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path


def main(paths: list[str]) -> None:
    from edgekit.engine.llama import LlamaRunner
    from edgekit.engine.llama_library import load_library
    from edgekit.profiles import ServeSettings

    os.environ["GGML_NO_BACKTRACE"] = "1"  # no debugger: it takes seconds
    load_library()
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    settings = ServeSettings(threads=1, context_tokens=64, slots=1, batch_tokens=32, ubatch_tokens=32)
    outcomes = {}
    for path in paths:
        child = os.fork()
        if child == 0:
            status = 1
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            signal.alarm(20)
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            with contextlib.suppress(Exception):
                runner = LlamaRunner(Path(path), settings, repack=False)
                runner.tokenize("the <think> in\n", add_special=True, parse_special=True)
                status = 0
            os._exit(status)
        _, wait_status = os.waitpid(child, 0)
        if os.WIFSIGNALED(wait_status):
            outcomes[path] = signal.Signals(os.WTERMSIG(wait_status)).name
        else:
            outcomes[path] = "refused" if os.WEXITSTATUS(wait_status) else "ok"
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1:])
