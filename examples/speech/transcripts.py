"""From the text of a prompt to the characters that are spoken in it."""

from __future__ import annotations

import re

ALPHABET = "abcdefghijklmnopqrstuvwxyz '"
"""Class k + 1 is character k; class 0 is blank."""

CLASSES = len(ALPHABET) + 1

_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_SYMBOLS = {"*": "star", "#": "pound", "@": "at"}

# What the transcripts misspell, abbreviate or write differently from how it is spoken.
_REPAIRS = {
    "umute": "unmute",
    "fourtieth": "fortieth",
    "represenatives": "representatives",
    "un-indentified": "unidentified",
    "witheld": "withheld",
    "thru": "through",
    "exclaimation-point": "exclamation point",
    "de-activated": "deactivated",
    "re-entered": "reentered",
    "re-enter": "reenter",
    "re-record": "rerecord",
    "voice mail": "voicemail",
    "a.m.": "a m",
    "p.m.": "p m",
    "pbx": "p b x",
    "iax": "i a x",
    "mgcp": "m g c p",
    "usb": "u s b",
    "h.323": "h three two three",
    "3d": "three d",
}
_REPAIR = re.compile(
    "|".join(rf"(?<!\w){re.escape(word)}(?!\w)" for word in sorted(_REPAIRS, reverse=True))
)
_REMARKS = re.compile(r"\[[^]]*\]|\([^)]*\)|<[^>]*>")


def normalise(text: str) -> str:
    """Text of a prompt as spoken, in the characters of `ALPHABET`.

    Remarks in brackets go; digits, `*` and `#` become words; known misspellings are repaired.
    """
    text = _REMARKS.sub(" ", text.lower())
    text = _REPAIR.sub(lambda match: _REPAIRS[match[0]], text)
    text = re.sub(r"\d", lambda match: f" {_DIGITS[int(match[0])]} ", text)
    text = re.sub(r"[*#@]", lambda match: f" {_SYMBOLS[match[0]]} ", text)
    # An apostrophe belongs to a word only between letters; quotation marks do not.
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)
    return " ".join(re.sub(r"[^a-z']", " ", text).split())


def encode(text: str) -> list[int]:
    """Classes of the characters of a normalised text."""
    return [ALPHABET.index(character) + 1 for character in text]


def decode(labels: list[int]) -> str:
    """The text of a list of classes."""
    return "".join(ALPHABET[label - 1] for label in labels)
