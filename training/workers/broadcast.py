"""What the first process of a model tells the others: the run to train next."""

import functools
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=365)  # of the others while the first waits for a run to claim


def tell(task: object) -> None:
    """Say to the other processes, if there are any, what to train next; None ends them."""
    from torch import distributed

    if distributed.get_world_size() > 1:
        distributed.broadcast_object_list([task], 0, _control())


def hear() -> Any:
    """What the first process says next; blocks until it does."""
    from torch import distributed

    task = [None]
    distributed.broadcast_object_list(task, 0, _control())
    return task[0]


@functools.cache
def _control() -> Any:
    """A group of its own for the talk between processes, which may wait long."""
    from torch import distributed

    return distributed.new_group(backend="gloo", timeout=PATIENCE)
