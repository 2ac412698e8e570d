"""RNN-Transducer losses for JAX as native XLA custom calls."""

from importlib.metadata import version as _version

from .factored import rnnt_loss_simple
from .losses import check_inputs, rnnt_loss, rnnt_loss_from_arcs
from .types import Posteriors

__version__ = _version("jax-rnnt")

__all__ = ["Posteriors", "check_inputs", "rnnt_loss", "rnnt_loss_from_arcs", "rnnt_loss_simple"]
