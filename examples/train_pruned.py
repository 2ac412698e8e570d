"""Train the small transducer of train_speech.py with the pruned loss (arXiv 2206.13236).

    python examples/train_pruned.py                 the whole demo, on a CPU, in minutes
    python examples/train_pruned.py --minutes 1     a taste

The same data, model and evaluation; the model has an additive joiner besides, whose loss chooses
the cells of the lattice in which the joint network is computed. At the end, a step of this training
is measured beside one with the exact loss. Beside what train_speech.py writes, runs/pruned has
band.png, a picture of the cells that are kept, and costs.json.
"""

from __future__ import annotations

import dataclasses
import json
import time

from speech.allocator import keep_freed_memory

BEGIN = time.monotonic()  # Importing takes seconds, too.
keep_freed_memory()  # Before JAX allocates anything.

from speech.losses import PrunedLoss, exact_loss  # noqa: E402
from speech.measure import step_cost  # noqa: E402
from speech.model import ModelConfig  # noqa: E402
from speech.program import Run, run  # noqa: E402
from speech.report import draw_lattice  # noqa: E402
from speech.task import BUCKETS  # noqa: E402


def compare_costs(finished: Run) -> None:
    """Print and write what steps with the exact and with the pruned loss cost."""
    graph, state, recipe, task, out = finished
    bucket = max(BUCKETS, key=lambda bucket: bucket.frames * bucket.labels * bucket.size)
    batch = task.data.fullest(bucket)
    print(
        f"\nA step with {bucket.size} x {bucket.frames} frames and {bucket.labels} labels:\n"
        f"{'loss':8}{'ms':>8}{'peak MB':>10}{'temporaries MB':>16}"
    )
    costs = {"bucket": dataclasses.asdict(bucket)}
    for name, loss in (("exact", exact_loss), ("pruned", recipe.loss)):
        cost = step_cost(graph, dataclasses.replace(recipe, loss=loss), state, batch)
        costs[name] = cost._asdict()
        print(
            f"{name:8}{1000 * cost.seconds:8.1f}{cost.peak_bytes / 1e6:10.1f}"
            f"{cost.temporary_bytes / 1e6:16.1f}"
        )
    (out / "costs.json").write_text(json.dumps(costs, indent=2) + "\n")


def main() -> None:
    loss = PrunedLoss()
    finished = run(
        "Train a small transducer with the pruned loss.",
        "pruned",
        BEGIN,
        ModelConfig(simple=True),
        loss,
    )
    if finished is not None:
        draw_lattice(
            finished.graph, finished.state, finished.task, finished.out / "band.png", loss.s_range
        )
        compare_costs(finished)


if __name__ == "__main__":
    main()
