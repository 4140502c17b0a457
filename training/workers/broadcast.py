"""Messages from the first process of a model to the others: the run to train next."""

import functools
from datetime import timedelta
from typing import Any

CONTROL_TIMEOUT = timedelta(days=365)  # of the others, while the first waits to claim a run


def send(task: object) -> None:
    """Send what to train next to the other processes, if any; None ends them."""
    from torch import distributed

    if distributed.get_world_size() > 1:
        distributed.broadcast_object_list([task], 0, _control_group())


def receive() -> Any:
    """The next message of the first process; blocks until it arrives."""
    from torch import distributed

    task = [None]
    distributed.broadcast_object_list(task, 0, _control_group())
    return task[0]


@functools.cache
def _control_group() -> Any:
    """A separate process group for these messages, with a long timeout."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
