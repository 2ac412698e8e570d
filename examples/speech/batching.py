"""Batches of few static shapes: prompts sorted into buckets, padded to the bucket."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from speech.corpus import Prompt
from speech.features import MELS, change_speed, log_mel, spec_augment
from speech.transcripts import encode


class Batch(NamedTuple):
    """Padded arrays of B utterances; one unused row has both lengths 0."""

    features: np.ndarray  # (B, T * subsampling, MELS) float32
    lengths: np.ndarray  # (B,) int32, in encoder frames
    labels: np.ndarray  # (B, U) int32
    label_lengths: np.ndarray  # (B,) int32


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Shape of a batch: encoder frames, labels, utterances."""

    frames: int
    labels: int
    size: int


@dataclasses.dataclass(frozen=True)
class Utterance:
    """Features (frames, MELS) float32, normalised, and classes of the characters."""

    features: np.ndarray
    labels: list[int]

    def encoder_frames(self, subsampling: int) -> int:
        return len(self.features) // subsampling


def assemble(utterances: Sequence[Utterance], bucket: Bucket, subsampling: int) -> Batch:
    """Pad utterances that fit into the bucket's shape."""
    batch = Batch(
        np.zeros((bucket.size, bucket.frames * subsampling, MELS), np.float32),
        np.zeros(bucket.size, np.int32),
        np.zeros((bucket.size, bucket.labels), np.int32),
        np.zeros(bucket.size, np.int32),
    )
    for row, utterance in enumerate(utterances):
        frames = utterance.encoder_frames(subsampling)
        batch.features[row, : frames * subsampling] = utterance.features[: frames * subsampling]
        batch.lengths[row] = frames
        batch.labels[row, : len(utterance.labels)] = utterance.labels
        batch.label_lengths[row] = len(utterance.labels)
    return batch


@dataclasses.dataclass(frozen=True)
class Normaliser:
    """Mean and standard deviation (MELS,) of the training features."""

    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, prompts: Sequence[Prompt]) -> Normaliser:
        frames = np.concatenate([log_mel(prompt.samples) for prompt in prompts])
        return cls(frames.mean(0), frames.std(0))

    def utterance(self, prompt: Prompt, speed: float = 1.0) -> Utterance:
        """Features of a prompt played `speed` times as fast."""
        samples = prompt.samples if speed == 1 else change_speed(prompt.samples, speed)
        features = (log_mel(samples) - self.mean) / self.deviation
        return Utterance(features, encode(prompt.text))


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training prompts are varied."""

    speeds: tuple[float, ...] = (0.9, 0.95, 1.0, 1.05, 1.1)
    join_probability: float = 0.5
    join_frames: int = 100
    gain: float = 0.2
    band: int = 12
    span: int = 15
    span_rate: float = 1.0


class TrainingData:
    """Endless batches of augmented training prompts.

    What a step sees depends on the seed and the step alone, so that a resumed run goes on
    exactly where it stopped.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        normaliser: Normaliser,
        buckets: Sequence[Bucket],
        subsampling: int,
        augmentation: Augmentation,
        seed: int,
    ):
        self.variants = [
            [normaliser.utterance(prompt, speed) for speed in augmentation.speeds]
            for prompt in prompts
        ]
        self.buckets = buckets
        self.subsampling = subsampling
        self.augmentation = augmentation
        self.seed = seed
        self.space = encode(" ")

    def batches(self, first_step: int = 0) -> Iterator[Batch]:
        """The batches of steps `first_step`, `first_step` + 1, …"""
        step = epoch = 0
        while True:
            plan = self.plan(epoch)
            if not plan:
                raise ValueError("too few training prompts to fill one batch")
            for bucket, members in plan:
                if step >= first_step:
                    rng = np.random.default_rng([self.seed, 3, step])
                    rows = [self.augment(self.join(parts), rng) for parts in members]
                    yield assemble(rows, bucket, self.subsampling)
                step += 1
            epoch += 1

    def plan(self, epoch: int) -> list[tuple[Bucket, list[list[Utterance]]]]:
        """Batches of one pass over the prompts; a row is a list of prompts to join.

        What does not fill a batch is left out; it is different prompts in every epoch.
        """
        rng = np.random.default_rng([self.seed, 2, epoch])
        rows: dict[Bucket, list[list[Utterance]]] = {bucket: [] for bucket in self.buckets}
        for index in rng.permutation(len(self.variants)):
            parts = [self.variants[index][rng.integers(len(self.augmentation.speeds))]]
            while rng.random() < self.augmentation.join_probability:
                other = self.variants[rng.integers(len(self.variants))]
                parts.append(other[rng.integers(len(other))])
                if self.size(parts)[0] > self.augmentation.join_frames:
                    parts.pop()
                    break
            rng.shuffle(parts)
            bucket = self.bucket(parts)
            if bucket is not None:
                rows[bucket].append(parts)
        plan = [
            (bucket, members[start : start + bucket.size])
            for bucket, members in rows.items()
            for start in range(0, len(members) - bucket.size + 1, bucket.size)
        ]
        return [plan[index] for index in rng.permutation(len(plan))]

    def size(self, parts: Sequence[Utterance]) -> tuple[int, int]:
        """Encoder frames and labels of joined prompts, with a space between two."""
        frames = sum(len(part.features) for part in parts) // self.subsampling
        return frames, sum(len(part.labels) + 1 for part in parts) - 1

    def fullest(self, bucket: Bucket) -> Batch:
        """A batch of one row many times: prompts joined until no more fit into the bucket."""
        parts: list[Utterance] = []
        for utterance, *_ in self.variants:
            frames, labels = self.size([*parts, utterance])
            if frames <= bucket.frames and labels <= bucket.labels:
                parts.append(utterance)
        return assemble([self.join(parts)] * bucket.size, bucket, self.subsampling)

    def bucket(self, parts: Sequence[Utterance]) -> Bucket | None:
        frames, labels = self.size(parts)
        fitting = (b for b in self.buckets if frames <= b.frames and labels <= b.labels)
        return next(fitting, None)

    def join(self, parts: Sequence[Utterance]) -> Utterance:
        """One utterance that says all parts."""
        labels = list(parts[0].labels)
        for part in parts[1:]:
            labels += self.space + part.labels
        return Utterance(np.concatenate([part.features for part in parts]), labels)

    def augment(self, utterance: Utterance, rng: np.random.Generator) -> Utterance:
        """The same words, louder or softer, masked, and cut into encoder frames elsewhere."""
        features = utterance.features[rng.integers(self.subsampling) :]
        how = self.augmentation
        features = features + np.float32(how.gain * rng.standard_normal())
        features = spec_augment(
            features, rng, band=how.band, span=how.span, span_rate=how.span_rate
        )
        return Utterance(features, utterance.labels)
