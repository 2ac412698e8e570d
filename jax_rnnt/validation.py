"""Every check of arguments.

Shapes, dtypes and options are checked when tracing. Values of labels and lengths are checked when
they are known; otherwise `bounds.labels_and_bounds` marks the utterances whose values are bad.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from numbers import Integral
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import checkify

from .bounds import Sizes, Utterances, clip_to_int32, for_tracing
from .types import (
    ArcsOptions,
    Array,
    Implementation,
    LatticeOptions,
    Normalization,
    Reduction,
    Topology,
)

_LARGEST = float(np.finfo(np.float32).max)


def as_array(name: str, value: Any, expected: str = "an array") -> Array:
    """`value` as an array, with a clear error where it is none."""
    if isinstance(value, jax.Array | np.ndarray):
        return value
    if value is None:
        raise TypeError(f"{name} is None; expected {expected}.")
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise TypeError(f"{name} is not an array: {error}") from error
    if array.dtype == object:
        raise TypeError(
            f"{name} is a {type(value).__name__}; expected an array. Pass jnp.asarray({name})."
        )
    return array


def float_scores(name: str, value: Any) -> jax.Array:
    """Scores as a JAX array of one of the four supported dtypes."""
    scores = scores_or_type(name, value)
    # Where JAX looks for NaN, to convert what is an array would be an operation on its padding.
    return scores if isinstance(scores, jax.Array) else jnp.asarray(scores)


def scores_or_type(name: str, value: Any) -> Any:
    """Scores of one of these dtypes, or a `jax.ShapeDtypeStruct` that stands for them."""
    scores = value if isinstance(value, jax.ShapeDtypeStruct) else as_array(name, value)
    if not any(scores.dtype == d for d in (jnp.float32, jnp.float64, jnp.bfloat16, jnp.float16)):
        raise TypeError(
            f"{name} has dtype {scores.dtype}; expected float32, float64, bfloat16 or float16. "
            f"Convert with {name}.astype(jnp.float32)."
        )
    return scores


def sizes_of(name: str, shape: tuple[int, ...], num_core_dims: int) -> Sizes:
    """Sizes from the shape of logits (three core dimensions) or arcs (two)."""
    letters = "(*batch, T, U+1, V)" if num_core_dims == 3 else "(*batch, T, U+1)"
    if len(shape) < num_core_dims:
        raise ValueError(
            f"{name} has shape {shape}; expected {letters}, at least {num_core_dims} dimensions."
        )
    batch, core = shape[: len(shape) - num_core_dims], shape[len(shape) - num_core_dims :]
    if isinstance(core[1], int) and core[1] < 1:
        raise ValueError(
            f"{name} has shape {shape}, which is {letters} with U+1 = 0; there is one cell a frame "
            "more than there are labels, so U+1 >= 1. Did you leave out the start symbol?"
        )
    if num_core_dims == 3 and isinstance(core[2], int) and core[2] < 1:
        raise ValueError(f"{name} has shape {shape}, without classes; expected {letters}, V >= 1.")
    V = core[2] if num_core_dims == 3 else None
    return Sizes(batch, core[0], core[1] - 1, V, (name, name))


def with_known_lengths(sizes: Sizes) -> Sizes:
    """`sizes`, for losses that are computed in tiles: T and U must not be symbolic."""
    known_size(sizes.sources[0], "T", sizes.T)
    known_size(sizes.sources[1], "U", sizes.U)
    return sizes


def known_size(name: str, letter: str, size: Any) -> int:
    """A size that must not be symbolic, of the argument `name`."""
    if not isinstance(size, int):
        raise NotImplementedError(
            f"{name} has a shape with symbolic {letter} = {size}; expected a known number. Export "
            "with symbolic batch dimensions only."
        )
    return size


def like(name: str, value: Any, reference_name: str, reference: jax.Array) -> jax.Array:
    """Scores of the shape and dtype of others."""
    scores = float_scores(name, value)
    if scores.shape != reference.shape:
        raise ValueError(
            f"{name} has shape {scores.shape}; expected {reference.shape}, the shape of "
            f"{reference_name}."
        )
    if scores.dtype != reference.dtype:
        raise TypeError(
            f"{name} has dtype {scores.dtype}; expected {reference.dtype}, the dtype of "
            f"{reference_name}."
        )
    return scores


def integer_argument(
    name: str, value: Any, shape: tuple[int, ...], letters: str, hint: str = ""
) -> Array:
    """Labels, lengths or begins of the expected shape; `hint` is for a wrong last dimension."""
    array = as_array(name, value, f"integers of shape {letters} = {shape}")
    if not (jnp.issubdtype(array.dtype, jnp.integer)):
        raise TypeError(
            f"{name} has dtype {array.dtype}; expected an integer dtype. Convert with "
            f"{name}.astype(jnp.int32)."
        )
    if tuple(array.shape) != tuple(shape):
        hint = hint if array.shape[-1:] != tuple(shape[-1:]) else ""
        raise ValueError(
            f"{name} has shape {tuple(array.shape)}; expected {letters} = {tuple(shape)}, as other "
            f"arguments have it{hint or '.'}"
        )
    return array


def utterances_of(sizes: Sizes, given: Utterances) -> Utterances:
    """Checks dtypes and shapes of all that describes the utterances."""
    batch, where = sizes.batch, given.where
    if where is not None:
        where = as_array("where", where)
        if where.dtype != jnp.bool_:
            raise TypeError(
                f"where has dtype {where.dtype}; expected bool. Convert with "
                "jnp.asarray(where, bool)."
            )
        if tuple(where.shape) != tuple(batch):
            raise ValueError(f"where has shape {tuple(where.shape)}; expected (*batch,) = {batch}.")

    labels = None
    if sizes.V is not None:
        # The last dimension is wrong only where U is not taken from the labels themselves.
        hint = ", which have U+1 label positions."
        if getattr(given.labels, "shape", ())[-1:] == (sizes.T - 1,):
            first, second = sizes.sources
            swapped = f"dimensions of {first}" if first == second else f"{first} and {second}"
            hint += f" There are T = {sizes.T} frames: are {swapped} swapped?"
        labels = integer_argument("labels", given.labels, (*batch, sizes.U), "(*batch, U)", hint)

    def optional(name: str, core: tuple[int, ...] = (), letters: str = "(*batch,)") -> Array | None:
        value = getattr(given, name)
        return None if value is None else integer_argument(name, value, (*batch, *core), letters)

    return Utterances(
        labels=labels,
        logit_lengths=optional("logit_lengths"),
        label_lengths=optional("label_lengths"),
        logit_begins=optional("logit_begins"),
        label_begins=optional("label_begins"),
        where=where,
        label_windows=optional("label_windows", (sizes.U, 2), "(*batch, U, 2)"),
    )


def blank_class(blank_id: Any, num_classes: int) -> int:
    """`blank_id` in [0, V); negative values count from the end."""
    return class_of("blank_id", blank_id, num_classes)


def class_of(name: str, value: Any, num_classes: int) -> int:
    """A class in [0, V); negative values count from the end."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; expected a Python integer, which is static.")
    if not -num_classes <= int(value) < num_classes:
        raise ValueError(
            f"{name} is {value}; expected {-num_classes} <= {name} < {num_classes} for "
            f"V = {num_classes} classes."
        )
    return int(value) % num_classes


def whole_number(name: str, value: Any, *, minimum: int) -> int:
    """A static Python integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} is {value!r}; expected a Python integer, which is static.")
    if value < minimum:
        raise ValueError(f"{name} is {value}; expected {name} >= {minimum}.")
    return int(value)


def one_of(name: str, value: Any, literal: Any) -> Any:
    """`value`, if it is one of the values of a `Literal` type."""
    choices = get_args(literal)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, choices))}.")
    return value


def finite_number(name: str, value: Any, *, minimum: float = -math.inf) -> float:
    """A static float that is finite, also in float32."""
    if isinstance(value, Tracer):
        raise TypeError(
            f"{name} is traced; expected a Python number, which is static: changing it compiles "
            "anew. Mark it with static_argnames, or close over it."
        )
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name} is {value!r}; expected a Python number.")
    if not abs(value) <= _LARGEST or value < minimum:
        bound = "" if minimum == -math.inf else f" >= {minimum}"
        raise ValueError(
            f"{name} is {value}; expected a finite number{bound}, of at most {_LARGEST:.4g}, the "
            "largest of float32."
        )
    return float(value)


def optional_clamp(clamp: Any) -> float | None:
    """`clamp`, or None where it is off."""
    if clamp is None:
        return None
    value = finite_number("clamp", clamp)
    return value if value > 0 else None


def checked_arcs_options(num_classes: int, given: ArcsOptions) -> ArcsOptions:
    """Checks the options of the step from scores to arcs."""
    return ArcsOptions(
        blank_class(given.blank_id, num_classes),
        one_of("normalization", given.normalization, Normalization),
        optional_clamp(given.clamp),
        one_of("implementation", given.implementation, Implementation),
    )


def checked_lattice_options(given: LatticeOptions) -> LatticeOptions:
    """Checks the options of the recursion over arcs."""
    one_of("topology", given.topology, Topology)
    if static_bool("final_blank", given.final_blank) and given.topology != "modified":
        raise ValueError(
            f"final_blank is True with topology {given.topology!r}; it goes with "
            "topology='modified' only (a regular alignment always ends with blank)."
        )
    return LatticeOptions(
        given.topology,
        bool(given.final_blank),
        finite_number("delay_penalty", given.delay_penalty),
        finite_number("fastemit_lambda", given.fastemit_lambda, minimum=0.0),
        one_of("implementation", given.implementation, Implementation),
    )


def checked_arguments(
    sizes: Sizes,
    utterances: Utterances,
    arcs_options: ArcsOptions,
    lattice_options: LatticeOptions,
    check: Any,
    big_blanks: Sequence[int] = (),
) -> tuple[Utterances, ArcsOptions, LatticeOptions]:
    """What most losses are given beside the scores, checked."""
    arcs_options = checked_arcs_options(sizes.num_classes, arcs_options)
    lattice_options = checked_lattice_options(lattice_options)
    utterances = checked_utterances(sizes, utterances, arcs_options.blank_id, check, big_blanks)
    return utterances, arcs_options, lattice_options


def check_function(name: str, value: Any, arguments: str) -> None:
    """Raises TypeError for what cannot be called, or is a class whose instances can."""
    expected = f"expected a function of {arguments}"
    if isinstance(value, type):
        raise TypeError(
            f"{name} is the class {value.__name__}; {expected}. Pass an instance, as "
            f"{value.__name__}()."
        )
    if not callable(value):
        raise TypeError(f"{name} is {value!r}; {expected}.")


def static_bool(name: str, value: Any) -> bool:
    """A Python bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} is {value!r}; expected True or False, which is static.")
    return bool(value)


def reduction_of(reduction: Any) -> Reduction:
    """Checks how the losses of the batch are combined."""
    return one_of("reduction", reduction, Reduction)


# What is wrong with one value, where, and what was expected: (good, name, values, expectation).
_Check = tuple[Any, str, Any, str]


def check_values(sizes: Sizes, utterances: Utterances, blank_id: int | None) -> None:
    """Raises ValueError for bad known values; `checkify.check` for traced ones.

    Traced values are checked only under `checkify.checkify`; this is what `check_inputs` does.
    """
    for good, name, value, expected in _checks(sizes, utterances, blank_id, lambda x: True):
        raise_or_checkify(good, name, value, expected)


def checked_utterances(
    sizes: Sizes,
    given: Utterances,
    blank_id: int | None,
    check: Any,
    big_blanks: Sequence[int] = (),
) -> Utterances:
    """Labels, lengths, begins, `where` and windows, ready to be traced.

    With `check`, bad values raise as in `check_values` if they are known: concrete, on addressable
    devices.
    """
    utterances = utterances_of(sizes, given)
    if static_bool("check", check):
        checks = _checks(sizes, utterances, blank_id, is_known, big_blanks)
        for good, name, value, expected in checks:
            raise_or_checkify(good, name, value, expected)
    return for_tracing(utterances)


def is_known(value: Any) -> bool:
    """Whether the values of an array can be looked at now."""
    if isinstance(value, Tracer):
        return False
    return not isinstance(value, jax.Array) or value.is_fully_addressable


def _checks(
    sizes: Sizes,
    utterances: Utterances,
    blank_id: int | None,
    consider: Callable[[Any], bool],
    big_blanks: Sequence[int] = (),
) -> Iterable[_Check]:
    """The checks of the arrays that `consider` accepts; others stand for anything."""
    given = {field.name: getattr(utterances, field.name) for field in fields(utterances)}
    known = {name: x for name, x in given.items() if x is not None and is_known(x)}
    given |= jax.device_get(known)  # all at once, which on a GPU waits once
    where = given.pop("where")
    if where is not None and not consider(where):
        return
    ones = [1] * len(sizes.batch)  # shapes that broadcast, whatever the rank promotion
    ignored: Any = np.zeros(ones, np.bool_) if where is None else ~where
    values = {k: v for k, v in given.items() if v is not None and consider(v)}
    narrow = {name: clip_to_int32(value) for name, value in values.items()}

    of_frames, of_labels = sizes.limits
    for end_name, begin_name, limit, in_words in (
        ("logit_lengths", "logit_begins", sizes.T, of_frames),
        ("label_lengths", "label_begins", sizes.U, of_labels),
    ):
        if end_name in values:
            end = narrow[end_name]
            expected = f"0 <= {end_name} <= {in_words}"
            yield (end >= 0) & (end <= limit) | ignored, end_name, values[end_name], expected
        if begin_name in values:
            begin, end = narrow[begin_name], narrow.get(end_name, np.int32(limit))
            expected = f"0 <= {begin_name} <= {end_name}"
            yield (begin >= 0) & (begin <= end) | ignored, begin_name, values[begin_name], expected

    if not values.keys() & {"labels", "label_windows"}:
        return
    if any(given[name] is not None and name not in values for name in _LABEL_RANGE):
        return  # which labels are padding is not known
    position = np.arange(sizes.U, dtype=np.int32).reshape([*ones, sizes.U])
    begin, end = (
        narrow[name][..., None] if name in values else default
        for name, default in zip(_LABEL_RANGE, (np.int32(0), np.int32(sizes.U)), strict=True)
    )
    unused = ignored[..., None] | (position < begin) | (position >= end)
    if "label_windows" in values:
        windows = narrow["label_windows"]
        good = (windows[..., :1] <= windows[..., 1:]) | unused[..., None]
        expected = "a first frame that is not after the window's end: windows are [first, end)"
        yield good, "label_windows", values["label_windows"][..., :1], expected
    if "labels" not in values or blank_id is None or sizes.V is None:
        return
    labels = narrow["labels"]
    expected = f"0 <= label < V = {sizes.V} for labels before label_lengths"
    yield (labels >= 0) & (labels < sizes.V) | unused, "labels", values["labels"], expected
    expected = f"labels other than blank (class {blank_id}); leave blanks out of labels"
    yield (labels != blank_id) | unused, "labels", values["labels"], expected
    for big_blank in big_blanks:
        expected = f"labels other than big blanks (class {big_blank} is one of them)"
        yield (labels != big_blank) | unused, "labels", values["labels"], expected


_LABEL_RANGE = ("label_begins", "label_lengths")


def raise_or_checkify(good: Any, name: str, values: Any, expected: str) -> None:
    """The error for the first value that is not good, now or under checkify."""
    if good.size == 0:
        return
    if is_known(good):
        if np.all(good):
            return
        index = tuple(int(i) for i in np.argwhere(~np.asarray(good))[0])
        where = "[" + ", ".join(map(str, index)) + "]" if index else ""
        raise ValueError(f"{name}{where} is {np.asarray(values)[index]}; expected {expected}.")
    flat_good, flat_values = jnp.ravel(good), jnp.ravel(values)
    first = jnp.argmin(flat_good)
    braces = expected.replace("{", "{{").replace("}", "}}")
    checkify.check(
        jnp.all(flat_good),
        f"{name}[{{index}}] is {{value}} (index into the flattened array); expected {braces}.",
        index=first,
        value=flat_values[first],
    )
