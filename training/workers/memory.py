"""What to do when a model does not fit into memory."""

from training.config import Engine, Training
from training.record.errors import InputError

NO_MEMORY = "out of memory"
SIGNS = ("can't allocate memory", "out of memory", "not enough memory")  # of PyTorch's errors


def reason(error: Exception) -> str | None:
    """What to say of an error, if memory ran out."""
    text = str(error)
    ran_out = isinstance(error, MemoryError) or any(sign in text for sign in SIGNS)
    return NO_MEMORY if ran_out else None


def halved(engine: Engine, training: Training, ranks: int) -> Engine:
    """The engine with half the micro batch, if that divides the batch.

    Losses do not depend on it beyond rounding.
    """
    micro = engine.micro_batch(training, ranks)
    smaller = engine.model_copy(update={"micro_batch_size": micro // 2})
    try:
        if micro > 1:
            smaller.micro_batch(training, ranks)
            return smaller
    except InputError:
        pass
    return engine
