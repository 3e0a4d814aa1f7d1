"""What a process embeds goes on record by environment and day."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from aiplatform.lib import embedding
from aiplatform.lib.batching import Batcher
from tenants import near_matching

Use = tuple[uuid.UUID, int, int, float]


class Meter:
    """One process's, whose near matches embed on one thread: so what grows meanwhile is the environment's.

    What is not written yet when a process ends, or while the database is away, is not on record.
    """

    def __init__(self) -> None:
        self._uses: Batcher[Use, None] = Batcher("embedding-use", _add)

    @contextmanager
    def of(self, environment_id: uuid.UUID) -> Iterator[None]:
        """What is embedded within is this environment's."""
        before = embedding.metered()
        try:
            yield
        finally:
            after = embedding.metered()
            if after.texts > before.texts:
                milliseconds = (after.seconds - before.seconds) * 1000
                texts, tokens = after.texts - before.texts, after.tokens - before.tokens
                self._uses.put((environment_id, texts, tokens, milliseconds))


def _add(uses: list[Use]) -> list[None]:
    sums: dict[uuid.UUID, Use] = {}
    for environment, texts, tokens, milliseconds in uses:
        _, so_far, read, took = sums.get(environment, (environment, 0, 0, 0.0))
        sums[environment] = environment, so_far + texts, read + tokens, took + milliseconds
    near_matching.add_use(list(sums.values()))
    return [None] * len(uses)
