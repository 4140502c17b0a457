"""`python -m pipelines NAME --parameter value …`: runs the module of an entry point.

It handles signals before the module loads its libraries, so that Ctrl-C always prints one line.
"""

import runpy
import sys

from training.workers.signals import INTERRUPTED, interrupt_on_signals

COMMANDS = (
    *("main", "prepare", "sweep", "train", "import", "export", "fit", "optimize", "explore"),
    *("design", "verify", "evaluate", "critical", "schedule", "report"),
    *("status", "deliver"),
)
MODULES = {"import": "imports"}  # command → module, where the command is a Python keyword


def main() -> None:
    interrupt_on_signals()
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m pipelines NAME …; NAME is one of {', '.join(COMMANDS)}")
    name = sys.argv.pop(1)
    try:
        module = f"pipelines.{MODULES.get(name, name)}"
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(f"{name}: {INTERRUPTED}")


if __name__ == "__main__":
    main()
