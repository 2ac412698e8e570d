"""Errors in the words of the system whose function was called."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def arguments_named(**names: str) -> Iterator[None]:
    """Has the errors of this library call its arguments by other names; also a decorator.

    Args:
      names: for those of this library's arguments that the caller knows otherwise.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        words = rf"\b({'|'.join(names)})\b"
        message = re.sub(words, lambda word: names[word[0]], str(error))
        if type(error) not in (TypeError, ValueError) or message == str(error):
            raise
        raise type(error)(message) from None


in_words_of_fast_rnnt = arguments_named(
    labels="symbols",
    logit_begins="t_begin of boundary",
    logit_lengths="t_end of boundary",
    label_begins="s_begin of boundary",
    label_lengths="s_end of boundary",
    blank_id="termination_symbol",
    topology="rnnt_type",
)
