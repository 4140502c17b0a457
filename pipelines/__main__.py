"""`python -m pipelines NAME --parameter value …`: runs the module of an entry point.

It takes the signals before that loads its libraries, so that Ctrl-C is one line at any moment.
"""

import runpy
import sys

from training.workers.signals import INTERRUPTED, interrupt_on_signals

COMMANDS = (
    *("main", "prepare", "sweep", "train", "import", "export", "fit", "optimize", "design"),
    *("verify", "critical", "schedule"),
)
MODULES = {"import": "imports"}  # of commands whose name Python keeps for itself


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
