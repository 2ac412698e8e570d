"""RNN-Transducer losses for JAX as native XLA custom calls."""

from importlib.metadata import version as _version

from .arc_terms import rnnt_loss_from_arc_terms
from .decoding import Decoded, greedy_decode
from .factored import rnnt_loss_simple, rnnt_loss_smoothed
from .joint import rnnt_loss_joint
from .label_windows import label_windows_from_frames
from .lengths import lengths_from_paddings
from .linear_joint import LinearJoint
from .losses import check_inputs, rnnt_loss, rnnt_loss_from_arcs
from .packed import rnnt_loss_packed, rnnt_loss_packed_from_arcs
from .packed_inputs import pack_joint_inputs, packed_size
from .pruned_joint import rnnt_loss_pruned_joint
from .pruning import do_rnnt_pruning, get_rnnt_prune_ranges, rnnt_loss_pruned
from .types import Posteriors

__version__ = _version("jax-rnnt")

__all__ = [
    "Decoded",
    "LinearJoint",
    "Posteriors",
    "check_inputs",
    "do_rnnt_pruning",
    "get_rnnt_prune_ranges",
    "greedy_decode",
    "label_windows_from_frames",
    "lengths_from_paddings",
    "pack_joint_inputs",
    "packed_size",
    "rnnt_loss",
    "rnnt_loss_from_arc_terms",
    "rnnt_loss_from_arcs",
    "rnnt_loss_joint",
    "rnnt_loss_packed",
    "rnnt_loss_packed_from_arcs",
    "rnnt_loss_pruned",
    "rnnt_loss_pruned_joint",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
]
