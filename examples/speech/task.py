"""The recognition task: corpus, split, features and batches, ready for a training loop."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from speech import corpus
from speech.batching import Augmentation, Batch, Bucket, Normaliser, TrainingData, assemble
from speech.split import split

FRAME_SECONDS = 0.01
"""Of one feature frame, before subsampling."""

# Shapes with about the same number of padded frames. Characters come at 13 a second on average.
# Compilation takes seconds a shape, and the joint grows with frames times labels: prompts
# longer than 16 seconds are left out of training (never of evaluation).
BUCKETS = (Bucket(50, 34, 8), Bucket(100, 66, 4), Bucket(200, 124, 2), Bucket(400, 250, 1))


@dataclasses.dataclass(frozen=True)
class SpeechTask:
    """Training batches and the held-out prompts."""

    corpus: str
    training: list[corpus.Prompt]
    held_out: list[corpus.Prompt]
    normaliser: Normaliser
    data: TrainingData
    subsampling: int

    @property
    def references(self) -> list[str]:
        return [prompt.text for prompt in self.held_out]

    @property
    def held_out_batch(self) -> Batch:
        """All held-out prompts in one batch."""
        utterances = [self.normaliser.utterance(prompt) for prompt in self.held_out]
        shape = Bucket(
            max(utterance.encoder_frames(self.subsampling) for utterance in utterances),
            max(len(utterance.labels) for utterance in utterances),
            len(utterances),
        )
        return assemble(utterances, shape, self.subsampling)


def prepare(kind: str, cache: Path, *, subsampling: int, seed: int) -> SpeechTask:
    """Load the corpus, hold out a tenth of the prompts, compute the features."""
    name, prompts = corpus.load(kind, cache)
    training, held_out = split([prompt.text for prompt in prompts], seed=seed)
    chosen = [prompts[index] for index in training]
    normaliser = Normaliser.fit(chosen)
    data = TrainingData(chosen, normaliser, BUCKETS, subsampling, Augmentation(), seed)
    return SpeechTask(
        name, chosen, [prompts[index] for index in held_out], normaliser, data, subsampling
    )
