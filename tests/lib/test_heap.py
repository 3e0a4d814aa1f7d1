"""What a process has loaded by its start is looked at by no later collection."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json, weakref
class Loop: pass
def ring():
    one = Loop()
    one.itself = one
    return weakref.ref(one)
kept = ring()  # garbage of the start is collected first, and what is left is frozen
from aiplatform.lib import heap
heap.freeze()
later = ring()
before = gc.get_freeze_count()
gc.collect()
print(json.dumps([kept() is None, before > 1000, gc.get_freeze_count() == before, later() is None]))
"""


def test_what_was_loaded_is_frozen_and_garbage_of_calls_is_still_collected() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [True, True, True, True]
