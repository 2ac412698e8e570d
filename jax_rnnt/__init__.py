"""RNN-Transducer losses for JAX as native XLA custom calls."""

from importlib.metadata import version as _version

from . import compat
from .alignment import rnnt_align, rnnt_align_from_arcs, rnnt_align_pruned, rnnt_align_simple
from .arc_terms import rnnt_loss_from_arc_terms
from .arcs_from_logits import rnnt_arcs
from .beam_decoding import Hypotheses, beam_decode
from .best_labels import rnnt_best_labels, rnnt_best_labels_simple
from .checking import check_inputs, check_inputs_packed, check_inputs_pruned
from .decoding import Decoded, greedy_decode
from .emission import expected_emission_frames, mean_emission_delay
from .exporting import disabled_export_checks
from .factored import rnnt_loss_simple, rnnt_loss_smoothed
from .joint import rnnt_align_joint, rnnt_arcs_joint, rnnt_loss_joint
from .label_windows import label_windows_from_frames
from .lengths import lengths_from_paddings
from .linear_joint import LinearDurationJoint, LinearJoint
from .losses import rnnt_loss, rnnt_loss_from_arcs
from .multi_blank import (
    rnnt_align_multi_blank,
    rnnt_align_multi_blank_joint,
    rnnt_loss_multi_blank,
    rnnt_loss_multi_blank_joint,
)
from .packed import rnnt_loss_packed, rnnt_loss_packed_from_arcs
from .packed_alignment import (
    expected_emission_frames_packed,
    rnnt_align_packed,
    rnnt_align_packed_from_arcs,
    rnnt_best_labels_packed,
)
from .packed_inputs import pack_joint_inputs, packed_size
from .prune_ranges import get_rnnt_prune_ranges
from .pruned_joint import rnnt_loss_pruned_joint
from .pruned_loss import rnnt_loss_pruned
from .pruning import do_rnnt_pruning
from .tdt import rnnt_align_tdt, rnnt_align_tdt_joint, rnnt_loss_tdt, rnnt_loss_tdt_joint
from .types import Alignment, BestLabels, DurationAlignment, Posteriors

__version__ = _version("jax-rnnt")

__all__ = [
    "Alignment",
    "BestLabels",
    "Decoded",
    "DurationAlignment",
    "Hypotheses",
    "LinearDurationJoint",
    "LinearJoint",
    "Posteriors",
    "beam_decode",
    "check_inputs",
    "check_inputs_packed",
    "check_inputs_pruned",
    "compat",
    "disabled_export_checks",
    "do_rnnt_pruning",
    "expected_emission_frames",
    "expected_emission_frames_packed",
    "get_rnnt_prune_ranges",
    "greedy_decode",
    "label_windows_from_frames",
    "lengths_from_paddings",
    "mean_emission_delay",
    "pack_joint_inputs",
    "packed_size",
    "rnnt_align",
    "rnnt_align_from_arcs",
    "rnnt_align_joint",
    "rnnt_align_multi_blank",
    "rnnt_align_multi_blank_joint",
    "rnnt_align_packed",
    "rnnt_align_packed_from_arcs",
    "rnnt_align_pruned",
    "rnnt_align_simple",
    "rnnt_align_tdt",
    "rnnt_align_tdt_joint",
    "rnnt_arcs",
    "rnnt_arcs_joint",
    "rnnt_best_labels",
    "rnnt_best_labels_packed",
    "rnnt_best_labels_simple",
    "rnnt_loss",
    "rnnt_loss_from_arc_terms",
    "rnnt_loss_from_arcs",
    "rnnt_loss_joint",
    "rnnt_loss_multi_blank",
    "rnnt_loss_multi_blank_joint",
    "rnnt_loss_packed",
    "rnnt_loss_packed_from_arcs",
    "rnnt_loss_pruned",
    "rnnt_loss_pruned_joint",
    "rnnt_loss_simple",
    "rnnt_loss_smoothed",
    "rnnt_loss_tdt",
    "rnnt_loss_tdt_joint",
]


def __dir__() -> list[str]:
    """The public names alone, not the modules that define them."""
    return [*__all__, "__version__"]
