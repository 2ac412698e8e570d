"""What `jax.export` has to be told of native losses."""

from __future__ import annotations

from jax.export import DisabledSafetyCheck

from ._native.platforms import KERNELS


def disabled_export_checks() -> list[DisabledSafetyCheck]:
    """The checks of `jax.export.export` that refuse this library's custom calls.

    JAX cannot know whether a custom call will be there, and mean the same, where a program is
    loaded. Those of this library are where the version of it that exported the program has been
    imported, before the program runs.

    Returns:
      One check for each kernel, for the argument `disabled_checks`.
    """
    targets = {name for module in KERNELS.values() for name in module.registrations()}
    return [DisabledSafetyCheck.custom_call(name) for name in sorted(targets)]
