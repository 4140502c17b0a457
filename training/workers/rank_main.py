"""The entry point of processes that train one model together, started by DeepSpeed's launcher or
by srun.

The first process is an ordinary worker. It sends each run to the others before training it; they
train with it and log nothing.
"""

import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.managers import RemoteError
from pathlib import Path

from training.engine.checkpoint import DamagedError
from training.record import secrets
from training.record.errors import DivergedError, InputError
from training.record.quiet import quiet
from training.workers import step_tasks
from training.workers.broadcast import receive
from training.workers.launcher import Mailbox
from training.workers.messages import Alive, Event
from training.workers.signals import end, ignore_signals

WATCH_SECONDS = 2
CLOSED = ("Connection closed by peer", "Connection reset by peer")  # in gloo's error


def main(job_file: str) -> None:
    """Run one process; `job_file` is written by `training.workers.launcher`."""
    from training.engine.devices import use_device
    from training.workers import worker

    secrets.guard()
    step_tasks.take_place()
    machines, manifest, index, address, key = pickle.loads(Path(job_file).read_bytes())
    if os.environ["RANK"] == "0":
        Mailbox.register("events", exposed=["put"])
        Mailbox.register("work", exposed=["get"])
        Mailbox.register("worker", exposed=["is_leaving"])
        mailbox = Mailbox(address, authkey=key)
        try:
            mailbox.connect()
            work = mailbox.work()  # type: ignore[attr-defined]
            os.environ.update(work.get("environment"))
            events = mailbox.events()  # type: ignore[attr-defined]
            parent = mailbox.worker()  # type: ignore[attr-defined]
        except (OSError, EOFError):
            sys.exit(1)  # nobody is left to work for

        def put(event: Event) -> None:
            try:
                events.put(event)
            except (OSError, EOFError):
                raise KeyboardInterrupt from None  # nobody is left to work for

        threading.Thread(target=_watch, args=(put, parent.is_leaving), daemon=True).start()
        sys.exit(worker.main(work.get("job"), index, put))
    quiet()
    ignore_signals()  # the first process ends all of them
    try:
        use_device(index, machines.threads)
        _follow(manifest)
    except DamagedError as error:
        error.set_aside()
        sys.exit(1)
    except (InputError, KeyboardInterrupt):
        sys.exit(1)  # the first process says why
    except RuntimeError as error:
        if not any(text in str(error) for text in CLOSED):
            raise
        sys.exit(1)  # the first process is gone


def _watch(put: Callable[[Event], None], is_leaving: Callable[[], bool]) -> None:
    """Interrupt this process when its parent asks for it; end it, and so the others, when the
    parent is gone."""
    try:
        while True:
            time.sleep(WATCH_SECONDS)
            put(Alive())
            with suppress(OSError, EOFError):  # the parent is gone, which `put` will see
                if is_leaving():
                    os.kill(os.getpid(), signal.SIGTERM)
                    return
    except KeyboardInterrupt:
        end()
    except RemoteError:
        pass  # this process has finished and closed the mailbox


def _follow(manifest: Path) -> None:
    """Train the runs that the first process sends until it sends None."""
    from training.data import corpus as corpora
    from training.engine import trainer as trainers

    trainers.silence_libraries()
    trainers.connect()
    corpus = corpora.load(manifest)
    while task := receive():
        run, saved = task
        trainer = trainers.Trainer(run, corpus, saved)
        try:
            for _ in trainer.reports():
                pass
            if run.engine.save_models:
                trainer.save_model()
            if run.keep_state:
                trainer.keep_state()
        except DivergedError:
            pass  # the first process says so
        trainer.close()


if __name__ == "__main__":
    main(sys.argv[1])
