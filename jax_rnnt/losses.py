"""The exact losses: `rnnt_loss` from logits, `rnnt_loss_from_arcs` from arc log-probabilities."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp

from . import validation
from ._native.jax_versions import align_varying_axes, with_whole_rows
from .bounds import Utterances, labels_and_bounds
from .label_windows import label_mask, only_allowed
from .lattice import gradient_weights, lattice, lattice_score
from .numerics import accumulator_dtype
from .reduction import negative, reduce_losses
from .transducers import RnnTransducer, loss_of_scores
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Posteriors,
    Reduction,
    Topology,
)


def rnnt_loss(
    logits: Array,
    labels: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    blank_id: int = 0,
    topology: Topology = "regular",
    normalization: Normalization = "softmax",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    clamp: float | None = None,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array:
    """RNN-Transducer loss: minus the log-probability of the labels, summed over all alignments.

    The log-softmax is fused: beside the logits and their gradient, memory is a few `(T, U+1)`
    planes. The native gradient takes the memory of the logits where nothing else needs them: in a
    jitted training step that computes them, or donated.

    Args:
      logits: `(*batch, T, U+1, V)` float32, float64, bfloat16 or float16: output of the joint
        network for frame `t` after `u` labels, unnormalised unless `normalization="none"`. V
        includes blank.
      labels: `(*batch, U)` integers in [0, V), none of them blank. Padding may be anything.
      logit_lengths: `(*batch,)` integers, frames of each utterance; None means T.
      label_lengths: `(*batch,)` integers, labels of each utterance; None means U.
      blank_id: class of the blank symbol; negative values count from the end.
      topology: `"regular"` (Graves, arXiv 1211.3711, equations 12 to 18): any number of labels a
        frame. `"modified"`: at most one label a frame, every arc takes a frame. `"constrained"`: as
        modified, a label arc also has the log-probability of the blank arc of the cell above it
        (both: k2, arXiv 2206.13236).
      normalization: `"softmax"`; `"none"` if the logits already are log-probabilities; `"hat"`, a
        Bernoulli variable for blank and a softmax over the labels (arXiv 2003.07705).
      final_blank: with `"modified"`, let the last frame have a blank arc only, as
        optimized_transducer's `one_sym_per_frame` does.
      fastemit_lambda: FastEmit (arXiv 2010.11148): label arcs weigh `1 + fastemit_lambda` in the
        gradient; the loss value is unchanged. Static, >= 0.
      delay_penalty: adds `delay_penalty * ((frames - 1) / 2 - t)` to the log-probability of label
        arcs (arXiv 2211.00490). Static.
      clamp: bounds each element of the gradient by the logits, before it is multiplied by the
        cotangent, to +-clamp. None or <= 0 is off. Static.
      logit_begins, label_begins: `(*batch,)` integers: first frame and first label of each
        utterance (0 by default); lengths stay absolute ends.
      label_windows: `(*batch, U, 2)` integers: first frame and end, which is exclusive, in which
        each label may be emitted (arXiv 2011.03072), any frame if None. Windows may reach beyond
        the utterance. `label_windows_from_frames` makes them from an alignment.
      reduction: `"none"`, `"mean"` over the utterances that `where` keeps, or `"sum"`.
      where: `(*batch,)` bool: utterances to keep; the others have loss and gradient zero.
      implementation: `"native"` kernels, pure-JAX `"xla"`, or `"auto"`: native where the platform
        that the program is compiled for has kernels. `"xla"` can be differentiated more than once
        here and in `rnnt_arcs`, `rnnt_loss_from_arcs`, `rnnt_loss_pruned`, `rnnt_loss_tdt` and
        `rnnt_loss_multi_blank`; other losses are made for first derivatives only.
      check: raise errors for bad values of labels, lengths and begins if they are known, which
        waits for them. Inside `jit` they are not known.

    Returns:
      `(*batch,)` losses in float32 (float64 for float64 logits), or a scalar. Gradients have the
      dtype of the logits.

      An utterance without any alignment (modified with more labels than frames, windows that no
      alignment fits, all paths -inf) has loss +inf; one with NaN or +inf in a score that an
      alignment uses, or with bad lengths or labels that could not be checked, NaN. Both have
      gradient zero, and no effect on others. No frames and no labels give loss 0. Padding has no
      effect and gets gradient zero.

      Arcs with log-probability below -1e7 count as -inf, those above 1e6 as NaN, and prefixes of
      alignments 5e8 nats (in float32) below the likeliest of the same frame may count as
      impossible.

    Raises:
      TypeError: an argument has the wrong dtype or type.
      ValueError: an argument has the wrong shape or an unknown value; with `check`, a length, begin
        or label is out of range, or a label is blank.
      NotImplementedError: on compilation, `implementation="native"` for a platform without kernels;
        for a second derivative, any implementation but `"xla"`.
    """
    utterances = Utterances(
        labels=labels, logit_lengths=logit_lengths, label_lengths=label_lengths,
        logit_begins=logit_begins, label_begins=label_begins, label_windows=label_windows,
        where=where,
    )  # fmt: skip
    logits, utterances, arcs_options, lattice_options = checked_logits(
        logits,
        utterances,
        ArcsOptions(blank_id, normalization, clamp, implementation),
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    reduction = validation.reduction_of(reduction)
    transducer = RnnTransducer(arcs_options, lattice_options)
    return loss_of_scores(transducer, (logits,), utterances, reduction)


def checked_logits(
    logits: Any,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    check: Any,
) -> tuple[jax.Array, Utterances, ArcsOptions, LatticeOptions]:
    """All arguments of a function of logits, checked."""
    logits = validation.float_scores("logits", logits)
    sizes = validation.sizes_of("logits", logits.shape, 3)
    return logits, *validation.checked_arguments(
        sizes, utterances, arcs_options, lattice_options, check
    )


@overload
def rnnt_loss_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    return_posteriors: Literal[False] = False,
    topology: Topology = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array: ...


@overload
def rnnt_loss_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    return_posteriors: Literal[True],
    topology: Topology = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> tuple[jax.Array, Posteriors]: ...


def rnnt_loss_from_arcs(
    blank_log_probs: Array,
    label_log_probs: Array,
    logit_lengths: Array | None = None,
    label_lengths: Array | None = None,
    *,
    return_posteriors: bool = False,
    topology: Topology = "regular",
    final_blank: bool = False,
    fastemit_lambda: float = 0.0,
    delay_penalty: float = 0.0,
    logit_begins: Array | None = None,
    label_begins: Array | None = None,
    label_windows: Array | None = None,
    reduction: Reduction = "none",
    where: Array | None = None,
    implementation: Implementation = "auto",
    check: bool = True,
) -> jax.Array | tuple[jax.Array, Posteriors]:
    """RNN-Transducer loss from the log-probabilities of the two arcs that leave each cell.

    Args:
      blank_log_probs: `(*batch, T, U+1)` float32, float64, bfloat16 or float16: log-probability of
        blank at frame `t` after `u` labels.
      label_log_probs: the same shape and dtype; column `u` emits label `u`, the last one is
        ignored. Of an array `(*batch, T, U+1, 2)` that holds both, pass `arcs[..., 0]` and
        `arcs[..., 1]`.
      return_posteriors: also return the arc posteriors. They are constants to differentiation.
      logit_lengths, label_lengths, topology, final_blank, fastemit_lambda, delay_penalty,
        logit_begins, label_begins, label_windows, reduction, where, implementation, check: as in
        `rnnt_loss`.

    Returns:
      The losses as `rnnt_loss` returns them, or `(losses, Posteriors(blank, label))`. Posteriors
      are `(*batch, T, U+1)` in float32 (float64 for float64 input), zero in padding and for
      utterances whose loss is not finite. Arcs that no complete path can take, and those below
      -1e7, count as -inf whatever is given for them. (For NaN that is so where lengths, begins and
      the topology leave no path; what windows or other arcs of -inf cut off still counts as NaN.)

    Raises:
      TypeError, ValueError, NotImplementedError: as `rnnt_loss`.
    """
    utterances = Utterances(
        logit_lengths=logit_lengths, label_lengths=label_lengths, logit_begins=logit_begins,
        label_begins=label_begins, label_windows=label_windows, where=where,
    )  # fmt: skip
    checked = checked_arcs(
        (blank_log_probs, label_log_probs),
        utterances,
        LatticeOptions(topology, final_blank, delay_penalty, fastemit_lambda, implementation),
        check,
    )
    reduction = validation.reduction_of(reduction)
    return_posteriors = validation.static_bool("return_posteriors", return_posteriors)
    loss, posteriors = _rnnt_loss_from_arcs(*checked, reduction, return_posteriors)
    return loss if posteriors is None else (loss, posteriors)


def checked_arcs(
    arcs: tuple[Any, Any],
    utterances: Utterances,
    options: LatticeOptions,
    check: Any,
) -> tuple[jax.Array, jax.Array, Utterances, LatticeOptions]:
    """All arguments of a function of arcs, checked."""
    blank = validation.float_scores("blank_log_probs", arcs[0])
    label = validation.like("label_log_probs", arcs[1], "blank_log_probs", blank)
    sizes = validation.sizes_of("blank_log_probs", blank.shape, 2)
    options = validation.checked_lattice_options(options)
    utterances = validation.checked_utterances(sizes, utterances, None, check)
    return blank, label, utterances, options


@partial(jax.jit, static_argnames=("options", "reduction", "return_posteriors"))
def _rnnt_loss_from_arcs(
    blank: jax.Array,
    label: jax.Array,
    utterances: Utterances,
    options: LatticeOptions,
    reduction: Reduction,
    return_posteriors: bool,
) -> tuple[jax.Array, Posteriors | None]:
    sizes = validation.sizes_of("blank_log_probs", blank.shape, 2)
    blank, label = with_whole_rows(len(sizes.batch), blank, label)
    _, bounds = labels_and_bounds(blank, sizes, utterances, None)
    dtype = accumulator_dtype(blank.dtype)
    label = only_allowed(label, label_mask(blank, sizes, utterances))
    operands = align_varying_axes(blank.astype(dtype), label.astype(dtype), bounds)
    result: Any = _arcs_loss(options, return_posteriors, *operands)
    loss, posteriors = result
    return reduce_losses(loss, reduction, utterances.where), jax.lax.stop_gradient(posteriors)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _arcs_loss(
    options: LatticeOptions,
    return_posteriors: bool,
    blank: jax.Array,
    label: jax.Array,
    bounds: jax.Array,
) -> tuple[jax.Array, Posteriors | None]:
    if return_posteriors:
        log_likelihood, posteriors = lattice(options, blank, label, bounds)
        return negative(log_likelihood), posteriors
    return negative(lattice_score(options, blank, label, bounds)), None


def _arcs_loss_fwd(options, return_posteriors, blank, label, bounds):
    log_likelihood, posteriors = lattice(options, blank, label, bounds)
    return (negative(log_likelihood), posteriors if return_posteriors else None), posteriors


def _arcs_loss_bwd(options, return_posteriors, posteriors, cotangents):
    del return_posteriors
    return *gradients_by_arcs(options, posteriors, cotangents[0][..., None, None]), None


_arcs_loss.defvjp(_arcs_loss_fwd, _arcs_loss_bwd)


def gradients_by_arcs(
    options: LatticeOptions, posteriors: Posteriors, cotangents: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Of `cotangents * loss` by blank and label arcs; each arc has its utterance's cotangent."""
    # Exact zeros where no alignment goes, also for a cotangent that is not finite.
    blank, label = (
        jnp.where(weights != 0, -cotangents * weights, 0)
        for weights in gradient_weights(options, posteriors)
    )
    return blank, label
