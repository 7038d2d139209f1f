"""Errors that a user can mend: one sentence that names the thing at fault and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A problem in the user's input.

    The command line prints the message as one sentence and exits with code 2, without a traceback.
    It is a ``ValueError`` so that scikit-learn's conventions hold for the estimator.
    """


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Error for an unknown name, with the nearest known ones.

    Example:
        >>> print(unknown_name("method", "vmfcop", ["coop", "vmfcoop"]))
        Unknown method 'vmfcop'; did you mean 'vmfcoop' or 'coop'?
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if nearest:
        hint = "did you mean " + " or ".join(f"'{n}'" for n in nearest) + "?"
    else:
        shown = ", ".join(known[:12])
        hint = f"known are {shown}." if len(known) <= 12 else f"{len(known)} are known, among them {shown}."
    return UserError(f"Unknown {kind} '{name}'; {hint}")
