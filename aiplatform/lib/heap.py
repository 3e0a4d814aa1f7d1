"""The garbage collector, told what a server's process keeps for good."""

import gc

COLLECT_AFTER_OBJECTS = 10_000


def freeze() -> None:
    """Keeps all that is loaded by now out of every later collection, which then looks at what calls leave behind alone.

    Call it once, when the process is ready to serve. Source: docs.python.org/3/library/gc.html#gc.freeze
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, 10, 10)
