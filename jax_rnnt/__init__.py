"""RNN-Transducer losses for JAX as native XLA custom calls."""

from importlib.metadata import version as _version

from .losses import check_inputs, rnnt_loss, rnnt_loss_from_arcs
from .pruning import do_rnnt_pruning, get_rnnt_prune_ranges, rnnt_loss_pruned
from .types import Posteriors

__version__ = _version("jax-rnnt")

__all__ = [
    "Posteriors",
    "check_inputs",
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "rnnt_loss",
    "rnnt_loss_from_arcs",
    "rnnt_loss_pruned",
]
