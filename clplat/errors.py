"""Errors that are a user's to mend: one clear line each, and the exit code that goes with it.

The command line prints the message alone; ``--traceback`` shows where it came from. Exit codes: 0 ok, 1 the run
failed, 2 usage or configuration, 3 missing data or extra, 75 checkpointed and to be requeued, 130 interrupted.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_MISSING, EXIT_REQUEUE, EXIT_INTERRUPTED = 0, 1, 2, 3, 75, 130


class ClplatError(Exception):
    """A mistake or mishap that has a plain explanation. ``exit_code`` is what the process ends with."""

    exit_code = EXIT_FAILED


class UsageError(ClplatError):
    """The command, the configuration or the pairing asked for is not possible (exit code 2).

    Args:
        messages: one line for each problem found; all are printed at once.
    """

    exit_code = EXIT_USAGE

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class MissingError(ClplatError):
    """Data or an optional extra is not here (exit code 3); the message says what to install or where to put it."""

    exit_code = EXIT_MISSING


class RunFailedError(ClplatError):
    """The run itself failed (exit code 1): a loss that is not finite, a run directory that cannot be written."""


def suggestion(word: str, valid: Iterable[str]) -> str:
    """`` Did you mean 'ewc'?`` for a close match; the valid words, unless there is one and they are many."""
    words = sorted(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    text = f" Did you mean '{close[0]}'?" if close else ""
    if not close or len(words) < 20:
        text += f" Valid: {', '.join(words)}."
    return text
