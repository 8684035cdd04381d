"""What a traced program will do: its convolutions, its operations, its traffic.

XLA's own count of operations takes the body of a loop once, however often it runs, and
on CPU leaves out what it hands to libraries; so operations are counted here, from the
traced program, loop by loop.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

__all__ = [
    "Work",
    "best_block",
    "has_convolutions",
    "has_custom_vjp",
    "has_while",
    "mebibytes",
    "planned_memory",
    "slow_convolutions",
    "work",
]

_OURS = {"conv", "conv_input_gradient", "conv_kernel_gradient"}
_ARITHMETIC = {
    *("add", "add_any", "sub", "mul", "div", "neg", "abs", "max", "min", "sign"),
    *("exp", "exp2", "expm1", "log", "log1p", "logistic", "tanh", "erf", "sin", "cos"),
    *("sqrt", "rsqrt", "pow", "integer_pow", "square", "clamp"),
}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "cumsum", "argmax", "argmin"}


class Work(NamedTuple):
    """What a program does when it runs once.

    Attributes:
      flops: floating-point operations: two for each multiply-add of matrix products and
        convolutions, one for each element of other arithmetic. The body of a `while`
        loop, whose length is not known, counts once, and of branches the longest.
      bytes_moved: what matrix products and convolutions read and write, if everything
        else were fused into them; less is moved where a cache keeps something.
    """

    flops: float
    bytes_moved: float

    @property
    def intensity(self) -> float:
        """Operations for each byte moved."""
        return self.flops / max(self.bytes_moved, 1.0)


def work(jaxpr: Jaxpr) -> Work:
    """Counts the work of a program, with that of everything it calls."""
    flops = bytes_moved = 0.0
    for equation in jaxpr.eqns:
        inner = [work(sub) for sub in _sub_jaxprs(equation)]
        name = equation.primitive.name
        if name == "cond":
            inner = [max(inner, default=Work(0, 0))]
        times = equation.params["length"] if name == "scan" else 1
        flops += times * sum(part.flops for part in inner)
        bytes_moved += times * sum(part.bytes_moved for part in inner)
        if not inner:
            flops += _flops(equation)
        if name in _OURS or name in ("dot_general", "conv_general_dilated"):
            bytes_moved += sum(
                _size(v) * _aval(v).dtype.itemsize
                for v in (*equation.invars, *equation.outvars)
            )
    return Work(flops, bytes_moved)


def planned_memory(program: jax.stages.Compiled) -> tuple[int, int]:
    """Counts bytes XLA plans for a program: in all, and of them for temporary arrays.

    In all means arguments, results and temporary arrays, less what results take over
    from donated arguments.
    """
    plan = program.memory_analysis()
    if plan is None:  # a backend that does not plan ahead
        return 0, 0
    kept = plan.argument_size_in_bytes + plan.output_size_in_bytes
    temporary = plan.temp_size_in_bytes
    return kept - plan.alias_size_in_bytes + temporary, temporary


def mebibytes(count: int) -> str:
    """Writes a number of bytes for people."""
    return f"{count / 2**20:,.4g} MiB"


def best_block(jaxpr: Jaxpr) -> int | None:
    """Tells how many tasks at once are the fastest, by what is done for each.

    On CPU the activations of one task of a convolutional network fit the cache, and
    those of many do not. Dense nets want one large product, as accelerators always do.

    Returns:
      1, or None for all of them.
    """
    return 1 if jax.default_backend() == "cpu" and has_convolutions(jaxpr) else None


def has_convolutions(jaxpr: Jaxpr) -> bool:
    """Says whether there is a convolution, XLA's or of `metajax.models.convolution`."""
    names = _OURS | {"conv_general_dilated"}
    return any(equation.primitive.name in names for equation in _equations(jaxpr))


def has_custom_vjp(jaxpr: Jaxpr) -> bool:
    """Says whether a part has a reverse-mode rule of its own, by `jax.custom_vjp`."""
    return any(
        equation.primitive.name.startswith("custom_vjp_call")
        for equation in _equations(jaxpr)
    )


def has_while(jaxpr: Jaxpr) -> bool:
    """Says whether there is a loop of unknown length, with no reverse-mode rule."""
    return any(equation.primitive.name == "while" for equation in _equations(jaxpr))


def slow_convolutions(jaxpr: Jaxpr, backend: str) -> int:
    """Counts XLA's convolutions that run tens of times slower than they could.

    They are those in groups, which `vmap` makes where every task has a kernel of its
    own, unless each group is one channel, as in depthwise convolutions; and on CPU all
    that are in loops.
    """
    convolutions = [e for e in _equations(jaxpr) if _is_xla_convolution(e)]
    in_groups = sum(map(_is_in_groups, convolutions))
    if backend != "cpu":
        return in_groups
    loops = [e for e in _equations(jaxpr) if e.primitive.name in ("scan", "while")]
    in_loops = {
        id(inner)
        for loop in loops
        for body in _sub_jaxprs(loop)
        for inner in _equations(body)
        if _is_xla_convolution(inner)
    }
    return sum(_is_in_groups(e) or id(e) in in_loops for e in convolutions)


def _is_xla_convolution(equation: JaxprEqn) -> bool:
    return equation.primitive.name == "conv_general_dilated"


def _is_in_groups(equation: JaxprEqn) -> bool:
    groups = equation.params["feature_group_count"]
    kernel_axes = equation.params["dimension_numbers"].rhs_spec
    channels_of_group = _shape(equation.invars[1])[kernel_axes[1]]
    return (groups > 1 and channels_of_group > 1) or equation.params[
        "batch_group_count"
    ] > 1


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for inner in _sub_jaxprs(equation):
            yield from _equations(inner)


def _sub_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in equation.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _flops(equation: JaxprEqn) -> float:
    name, inputs, outputs = equation.primitive.name, equation.invars, equation.outvars
    if name in _ARITHMETIC:
        return _size(outputs[0])
    if name in _REDUCTIONS:
        return _size(inputs[0])
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        shape = _shape(inputs[0])
        return 2 * _size(outputs[0]) * math.prod(shape[axis] for axis in contracted)
    if name == "conv_general_dilated":
        numbers = equation.params["dimension_numbers"]
        # The channels of a kernel are those of one group already.
        shape = _shape(inputs[1])
        taps = math.prod(shape) // shape[numbers.rhs_spec[0]]
        return 2 * _size(outputs[0]) * taps
    if name in _OURS:
        # <conv(x, w), g> has one product for each output, tap and input channel.
        images, kernel = {
            "conv": (outputs[0], inputs[1]),
            "conv_input_gradient": (inputs[0], inputs[1]),
            "conv_kernel_gradient": (inputs[1], outputs[0]),
        }[name]
        return 2 * math.prod(_shape(images)[:3]) * _size(kernel)
    return 0.0


def _aval(variable: Any) -> Any:
    return variable.aval


def _shape(variable: Any) -> tuple[int, ...]:
    return _aval(variable).shape


def _size(variable: Any) -> int:
    return math.prod(_shape(variable))
