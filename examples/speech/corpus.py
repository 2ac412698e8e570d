"""Recorded prompts with their transcripts: a Debian package, or noises made here.

The recordings are the English prompts of the Asterisk telephone exchange, spoken by Allison
Smith, 8 kHz, CC-BY-SA 3.0; they are fetched with apt-get and kept in a cache, never committed.
"""

from __future__ import annotations

import dataclasses
import gzip
import shutil
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from speech.transcripts import ALPHABET, normalise

SAMPLE_RATE = 8000
"""Samples per second of every corpus here."""

PACKAGES = ("asterisk-core-sounds-en-wav", "asterisk-core-sounds-en")
_SOUNDS = "usr/share/asterisk/sounds/en_US_f_Allison"
_TRANSCRIPTS = "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"

# Recordings whose transcript is not what one hears: tones after the words, other wording.
_UNUSABLE = {"vm-intro", "demo-instruct", "demo-moreinfo", "letters/zed"}


class CorpusUnavailable(RuntimeError):
    """The recordings cannot be had on this machine; the message says why and what helps."""


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One recording: samples (n,) float32 in [-1, 1] at `SAMPLE_RATE`, and what is said."""

    name: str
    text: str
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def load(kind: str, cache: Path, seed: int = 0) -> tuple[str, list[Prompt]]:
    """The corpus that was really loaded ("asterisk" or "synthetic") and its prompts.

    `kind` "auto" takes the recordings and, where they cannot be had, says so on stderr and
    makes the synthetic corpus.
    """
    if kind not in ("auto", "asterisk", "synthetic"):
        raise ValueError(f"corpus must be auto, asterisk or synthetic, not {kind!r}")
    if kind != "synthetic":
        try:
            return "asterisk", list(_asterisk(fetch(cache)))
        except CorpusUnavailable as error:
            if kind == "asterisk":
                raise
            print(f"{error}\nTraining on the synthetic corpus instead.", file=sys.stderr)
    return "synthetic", synthetic(seed=seed)


def fetch(cache: Path) -> Path:
    """Download and unpack the packages into `cache`, once; needs no root."""
    root = cache / "asterisk"
    if root.exists():
        return root
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise CorpusUnavailable(
                f"The recorded prompts come as Debian packages, and {tool} was not found."
            )
    partial = cache / "asterisk.partial"
    partial.mkdir(parents=True, exist_ok=True)
    try:
        print(f"Fetching {' and '.join(PACKAGES)} into {cache}", file=sys.stderr)
        _run("apt-get", "download", *PACKAGES, cwd=partial)
        for package in sorted(partial.glob("*.deb")):
            _run("dpkg-deb", "-x", str(package.name), ".", cwd=partial)
            package.unlink()
        partial.rename(root)  # Last, so that an interrupted download leaves no half corpus.
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return root


def _run(*command: str, cwd: Path) -> None:
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if result.returncode:
        raise CorpusUnavailable(
            f"`{' '.join(command)}` failed:\n{result.stderr.strip()}\n"
            "If apt knows no such package, its lists may be missing: run `apt-get update` "
            "(as root) first. Without a network, use --corpus synthetic."
        )


def _asterisk(root: Path) -> Iterator[Prompt]:
    with gzip.open(root / _TRANSCRIPTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            name, colon, raw = line.partition(": ")
            path = root / _SOUNDS / f"{name}.wav"
            text = normalise(raw)  # Empty for tones and silence: their text is a remark.
            if not colon or not text or name in _UNUSABLE or not path.exists():
                continue
            with wave.open(str(path)) as sound:
                if (sound.getframerate(), sound.getnchannels()) != (SAMPLE_RATE, 1):
                    raise ValueError(f"{path} is not mono at {SAMPLE_RATE} samples per second")
                samples = np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
            yield Prompt(name, text, samples.astype(np.float32) / 32768)


def synthetic(count: int = 240, seed: int = 0) -> list[Prompt]:
    """Made-up words in which each character is a chord of its own, with noise around.

    Every character has two frequencies; duration, pitch, loudness and noise vary, so that
    there is something to learn, though far less than in speech.
    """
    rng = np.random.default_rng([seed, 1])
    grid = np.geomspace(300, 3000, len(ALPHABET))
    chords = {c: (grid[i], grid[(7 * i + 11) % len(grid)]) for i, c in enumerate(ALPHABET)}
    letters = list("abcdefghijklmnop")
    words = ["".join(rng.choice(letters, rng.integers(2, 6))) for _ in range(60)]
    prompts = []
    for index in range(count):
        text = " ".join(rng.choice(words, rng.integers(1, 5)))
        pitch = rng.uniform(0.97, 1.03)
        pieces = [np.zeros(rng.integers(400, 1200))]
        for character in text:
            time = np.arange(rng.integers(480, 960)) / SAMPLE_RATE
            tones = sum(np.sin(2 * np.pi * pitch * hertz * time) for hertz in chords[character])
            fade = np.minimum(1, np.minimum(time, time[::-1]) / 0.01)
            pieces.append((0 if character == " " else rng.uniform(0.1, 0.3)) * fade * tones)
        pieces.append(np.zeros(rng.integers(400, 1200)))
        samples = np.concatenate(pieces)
        samples += rng.normal(0, 0.003, len(samples))
        prompts.append(Prompt(f"synthetic-{index:03d}", text, samples.astype(np.float32)))
    return prompts
