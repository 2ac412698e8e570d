"""Train a small transducer on recorded telephone prompts, on a CPU, in minutes.

    python examples/train_speech.py                 the whole demo, about nine minutes on two cores
    python examples/train_speech.py --minutes 1     a taste
    python examples/train_speech.py --loss joint    without storing the logits, see rnnt_loss_joint
    python examples/train_speech.py --resume        go on where a run was interrupted

The corpus is fetched with apt-get and cached; without it the demo makes a synthetic one. Loss
curves, a picture of the lattice, checkpoints and metrics.json go to runs/speech.
"""

from __future__ import annotations

import time

from speech.allocator import keep_freed_memory

BEGIN = time.monotonic()  # Importing takes seconds, too.
keep_freed_memory()  # Before JAX allocates anything.

from speech.losses import exact_loss, joint_loss  # noqa: E402
from speech.model import ModelConfig  # noqa: E402
from speech.program import run  # noqa: E402

if __name__ == "__main__":
    run(
        "Train a small transducer on recorded prompts.",
        "speech",
        BEGIN,
        ModelConfig(),
        {"exact": exact_loss, "joint": joint_loss},
    )
