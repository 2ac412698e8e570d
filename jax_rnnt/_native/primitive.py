"""Builds JAX primitives out of FFI targets that accept any number of leading batch dimensions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir, xla

from . import jax_versions
from .in_place import apart_from_its_copy, pays_in_place
from .platforms import HOW_TO_GET_CUDA, KERNELS, platforms_with

# A core type is the shape (without batch dimensions) and dtype of an output.
CoreType = tuple[tuple[int, ...], Any]

HIGHER_DERIVATIVES = (
    "rnnt_loss, rnnt_arcs, rnnt_loss_from_arcs, rnnt_loss_pruned, rnnt_loss_tdt and "
    "rnnt_loss_multi_blank have higher ones with implementation='xla'."
)
"""Ends the messages of errors about derivatives that do not exist."""


def native_primitive(
    target: str,
    *,
    core_ndim: int,
    outputs: Callable[..., Sequence[CoreType]],
    fallback: Callable[..., Sequence[jax.Array]],
    attributes: Callable[..., Mapping[str, Any]],
    workspace: Callable[..., Sequence[CoreType]] = lambda kernels, *avals, **params: (),
    in_place: bool = False,
) -> Primitive:
    """A primitive that runs `target` where there is one, and `fallback`, in pure JAX, elsewhere.

    Args:
      target: FFI target name; operands, then outputs, then workspaces are its buffers. All of them
        have the same leading batch dimensions. Platforms need not have a kernel of it.
      core_ndim: dimensions of the first operand that are not batch dimensions.
      outputs: `(*core avals, **params)` to the core types of the outputs.
      fallback: the same function of arrays in JAX.
      attributes: `**params` to FFI attributes.
      workspace: `(kernels, *core avals, **params)` to core types of scratch outputs, which the
        primitive hides; `kernels` is the platform's extension module.
      in_place: whether the first output may be written over the first operand, where both have
        the same size.

    Every primitive takes the parameter `native`: if true, platforms without a kernel raise
    `NotImplementedError` on lowering.
    """
    primitive = Primitive(target)
    primitive.multiple_results = True
    # Not `jax.jit(bind)`, which recurses for ever under `jax_debug_nans`.
    primitive.def_impl(partial(xla.apply_primitive, primitive))

    def batch_dims(avals: Sequence[Any]) -> int:
        return avals[0].ndim - core_ndim

    def output_types(core_types: Callable[..., Sequence[CoreType]], avals, params) -> list[Any]:
        n = batch_dims(avals)
        core_avals = [jax.ShapeDtypeStruct(a.shape[n:], a.dtype) for a in avals]
        return [
            jax_versions.output_type(avals[0], n, shape, dtype)
            for shape, dtype in core_types(*core_avals, **params)
        ]

    @primitive.def_abstract_eval
    def _abstract_eval(*avals, native, **params):
        del native
        return output_types(outputs, avals, params)

    def lower_native(platform: str, ctx, *operands, native, **params):
        del native
        n = batch_dims(ctx.avals_in)
        scratch = output_types(partial(workspace, KERNELS[platform]), ctx.avals_in, params)
        ctx = ctx.replace(avals_out=[*ctx.avals_out, *scratch])
        extra: dict[str, mlir.ir.Attribute] = {
            "mhlo.frontend_attributes": mlir.ir.DictAttr.get(
                {"num_batch_dims": mlir.ir.StringAttr.get(str(n))}
            )
        }
        rule = sharding_rule(n, ctx.avals_in, ctx.avals_out)
        if rule is not None and jax_versions.uses_shardy():
            extra["sdy.sharding_rule"] = mlir.ir.Attribute.parse(rule)
        aliases: dict[int, int] | None = None  # of operands with results
        same_type = ctx.avals_out[0].dtype == ctx.avals_in[0].dtype
        if in_place and same_type and pays_in_place(ctx, operands[0]):
            aliases = {0: 0}
            if platform == "cpu":
                operands = (apart_from_its_copy(ctx, operands[0]), *operands[1:])
        call = jax.ffi.ffi_lowering(target, extra_attributes=extra, operand_output_aliases=aliases)
        results = call(ctx, *operands, **attributes(**params))
        return results[: len(results) - len(scratch)]

    def lower_fallback(ctx, *operands, native, **params):
        if native:
            platforms = ctx.platforms or ctx.module_context.platforms
            raise NotImplementedError(
                f"implementation='native' has no kernel for platform {', '.join(platforms)!r}, "
                f"only for {' and '.join(KERNELS)}. Use implementation='auto', which is pure JAX "
                "there, or 'xla'."
            )
        return mlir.lower_fun(partial(fallback, **params), multiple_results=True)(ctx, *operands)

    def lower_without_cuda_kernels(ctx, *operands, native, **params):
        if native:
            raise NotImplementedError(
                f"implementation='native' has no kernel for platform 'cuda': {HOW_TO_GET_CUDA}."
            )
        _warn_of_missing_cuda_kernels()
        return lower_fallback(ctx, *operands, native=native, **params)

    mlir.register_lowering(primitive, lower_fallback)
    # Nothing is missing where no platform has a kernel.
    if "cuda" not in KERNELS and platforms_with(target):
        mlir.register_lowering(primitive, lower_without_cuda_kernels, platform="cuda")
    for platform in platforms_with(target):
        mlir.register_lowering(primitive, partial(lower_native, platform), platform=platform)

    def batch(args, dims, **params):
        size = next(x.shape[d] for x, d in zip(args, dims, strict=True) if d is not None)
        args = [
            jnp.broadcast_to(x, (size, *x.shape)) if d is None else jnp.moveaxis(x, d, 0)
            for x, d in zip(args, dims, strict=True)
        ]
        results = primitive.bind(*jax_versions.align_varying_axes(*args), **params)
        return results, [0] * len(results)

    def jvp(primals, tangents, **params):
        raise NotImplementedError(
            f"{target} cannot be differentiated by itself: native losses have first derivatives in "
            f"reverse mode only. {HIGHER_DERIVATIVES}"
        )

    batching.primitive_batchers[primitive] = batch
    ad.primitive_jvps[primitive] = jvp
    return primitive


@cache
def _warn_of_missing_cuda_kernels() -> None:
    """Once: all the ops of a program are lowered one after another."""
    warnings.warn(
        f"On this GPU, jax_rnnt runs in pure JAX, several times slower than its kernels: "
        f"{HOW_TO_GET_CUDA}. implementation='xla' asks for pure JAX without this warning.",
        stacklevel=2,
    )


def sharding_rule(
    num_batch_dims: int, avals_in: Sequence[Any], avals_out: Sequence[Any]
) -> str | None:
    """The `#sdy.op_sharding_rule` that lets the batch dimensions be sharded, and nothing else.

    None without batch dimensions, and with symbolic ones (shape-polymorphic export), which the
    rule's syntax cannot express.
    """
    shapes = [a.shape for a in (*avals_in, *avals_out)]
    if num_batch_dims == 0 or not all(isinstance(d, int) for shape in shapes for d in shape):
        return None
    sizes: list[int] = list(shapes[0][:num_batch_dims])

    def factors(shape: tuple[int, ...]) -> str:
        first = len(sizes)
        sizes.extend(shape[num_batch_dims:])
        indices = [*range(num_batch_dims), *range(first, len(sizes))]
        return "[" + ", ".join(_factor_name(i) for i in indices) + "]"

    operands = ", ".join(factors(a.shape) for a in avals_in)
    results = ", ".join(factors(a.shape) for a in avals_out)
    names = [_factor_name(i) for i in range(len(sizes))]
    declared = ", ".join(f"{name}={size}" for name, size in zip(names, sizes, strict=True))
    private = ", ".join(names[num_batch_dims:])
    need_replication = f" need_replication={{{private}}}" if private else ""
    return (
        f"#sdy.op_sharding_rule<({operands})->({results}) {{{declared}}}{need_replication}, custom>"
    )


def _factor_name(index: int) -> str:
    """Shardy's names of factors: i, j, ..., z, then z_1, z_2, ..."""
    return chr(ord("i") + index) if index < 18 else f"z_{index - 17}"
