"""The interfaces of other systems' transducer losses, on JAX arrays: a module for each of them.

Names, argument order, defaults and reductions are theirs, computation and the treatment of bad
input are this library's. What differs on purpose is in the modules' docstrings.
"""

from . import fast_rnnt, k2, nemo, optimized_transducer, torchaudio, transducer, warp_rnnt, warprnnt

__all__ = [
    "fast_rnnt",
    "k2",
    "nemo",
    "optimized_transducer",
    "torchaudio",
    "transducer",
    "warp_rnnt",
    "warprnnt",
]
