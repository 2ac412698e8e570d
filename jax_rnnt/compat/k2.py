"""k2's transducer losses, which are those of `fast_rnnt` with more options.

What differs on purpose is listed there. `get_rnnt_prune_ranges_deprecated` is left out.
"""

from .fast_rnnt import *  # noqa: F403
from .fast_rnnt import __all__ as __all__
