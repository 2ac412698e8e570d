"""Log-mel features and their augmentation, in NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from scipy.signal import resample_poly

from speech.corpus import SAMPLE_RATE

MELS = 64
HOP = 80
"""Samples between frames: 10 ms."""

_WINDOW = 200
_FFT = 256
_HANN = np.hanning(_WINDOW + 1)[:-1].astype(np.float32)


def mel_filters() -> np.ndarray:
    """Triangular filters (MELS, FFT bins), equally spaced on the mel scale (O'Shaughnessy 1987)."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(30, top, MELS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(_FFT, 1 / SAMPLE_RATE)
    low, centre, high = (edges[i : MELS + i, None] for i in range(3))
    return np.maximum(0, np.minimum((bins - low) / (centre - low), (high - bins) / (high - centre)))


_FILTERS = mel_filters().astype(np.float32)


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Log-mel energies (frames, MELS) of samples (n,), 25 ms windows every 10 ms."""
    padded = np.pad(samples, (_WINDOW // 2, _WINDOW // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * _HANN, _FFT)
    power = spectrum.real**2 + spectrum.imag**2
    return np.log(power @ _FILTERS.T + 1e-4).astype(np.float32)


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Play `speed` times as fast, pitch included (Ko et al. 2015)."""
    ratio = Fraction(speed).limit_denominator(40)
    return resample_poly(samples, ratio.denominator, ratio.numerator).astype(np.float32)


def spec_augment(
    features: np.ndarray, rng: np.random.Generator, *, band: int, span: int, span_rate: float
) -> np.ndarray:
    """Normalised features (frames, MELS) with random bands and spans set to 0, the mean.

    SpecAugment (Park et al. 2019) without time warping: two bands of up to `band` mels, and
    spans of up to `span` frames, on average `span_rate` of them a second.
    """
    features = features.copy()
    frames = len(features)
    for _ in range(2):
        width = rng.integers(band + 1)
        start = rng.integers(MELS - width + 1)
        features[:, start : start + width] = 0
    for _ in range(rng.poisson(span_rate * frames * HOP / SAMPLE_RATE)):
        width = rng.integers(span + 1)
        start = rng.integers(max(frames - width, 1))
        features[start : start + width] = 0
    return features
