"""Train the small transducer of train_speech.py with the pruned loss (arXiv 2206.13236).

    python examples/train_pruned.py                 the whole demo, on a CPU, in minutes
    python examples/train_pruned.py --minutes 1     a taste

The same data, model and evaluation; the model has an additive joiner besides, whose loss chooses
the cells of the lattice in which the joint network is computed. At the end, a step of this training
is measured beside one with the exact loss. Beside what train_speech.py writes, runs/pruned has
band.png, a picture of the cells that are kept, and costs.json.
"""

from __future__ import annotations

import time

from speech.allocator import keep_freed_memory

BEGIN = time.monotonic()  # Importing takes seconds, too.
keep_freed_memory()  # Before JAX allocates anything.

from speech.losses import PrunedLoss  # noqa: E402
from speech.model import ModelConfig  # noqa: E402
from speech.program import run  # noqa: E402
from speech.report import draw_lattice  # noqa: E402


def main() -> None:
    loss = PrunedLoss()
    finished = run(
        "Train a small transducer with the pruned loss.",
        "pruned",
        BEGIN,
        ModelConfig(simple=True),
        {"pruned": loss},
    )
    if finished is not None:
        draw_lattice(
            finished.graph, finished.state, finished.task, finished.out / "band.png", loss.s_range
        )


if __name__ == "__main__":
    main()
