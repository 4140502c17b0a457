"""`python -m pipelines NAME --parameter value …`: runs the module of an entry point.

It takes the signals before that loads its libraries, so that Ctrl-C is one line at any moment.
"""

import runpy
import sys

from training.signals import interrupt_on_signals


def main() -> None:
    interrupt_on_signals()
    name = sys.argv.pop(1)
    try:
        runpy.run_module(f"pipelines.{name}", run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(f"{name}: interrupted; start it again to go on where it was")


if __name__ == "__main__":
    main()
