"""Waiting for what happens soon."""

import time
from collections.abc import Callable


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    """Returns once `condition` is true; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.1)
