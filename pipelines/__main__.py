"""`python -m pipelines NAME --parameter value …`: runs an entry point.

It handles signals before the module loads its libraries, so that Ctrl-C always prints one line.
"""

import sys
from importlib import import_module

from training.workers.signals import INTERRUPTED, interrupt_on_signals

COMMANDS = (
    *("main", "prepare", "sweep", "train", "import", "export", "fit", "optimize", "explore"),
    *("design", "verify", "evaluate", "critical", "schedule", "report"),
    *("status", "deliver"),
)
MODULES = {"import": "imports"}  # command → module, where the command is a Python keyword
STAGES = {"train": "proxy"}  # command → stage of its runs, where they differ


def main() -> None:
    interrupt_on_signals()
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m pipelines NAME …; NAME is one of {', '.join(COMMANDS)}")
    name = sys.argv.pop(1)
    try:
        command = import_module(f"pipelines.{MODULES.get(name, name)}")
        sys.argv[0] = f"pipelines {name}"  # in the usage
        entry = import_module("pipelines.entry")
        entry.main(STAGES.get(name, name), command.main, command.Parameters)
    except KeyboardInterrupt:
        sys.exit(f"{name}: {INTERRUPTED}")


if __name__ == "__main__":
    main()
