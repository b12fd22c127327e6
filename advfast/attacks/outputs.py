"""Which part of what a model returns are its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

Output = str | int | Callable[[object], Tensor] | None

_SHOWN = 8
"""Parts that an error names."""


def _described(result: object) -> str:
    """What came, for an error: the keys of a mapping, the types in a sequence."""
    name = type(result).__name__
    if isinstance(result, Mapping):
        parts = [repr(key) for key in result]
        opening, closing = "with keys ", ""
    elif isinstance(result, Sequence) and not isinstance(result, (str, bytes)):
        parts = [type(part).__name__ for part in result]
        opening, closing = "(", ")"
    else:
        return name
    if not parts:
        return f"an empty {name}"
    more = ", ..." if len(parts) > _SHOWN else ""
    return f"{name} {opening}{', '.join(parts[:_SHOWN])}{more}{closing}"


def _advice(result: object) -> str:
    """How to say where the logits are, by what came."""
    if isinstance(result, Mapping):
        tensors = [key for key, part in result.items() if isinstance(part, Tensor)]
        named = "logits" if "logits" in tensors or not tensors else tensors[0]
        return f"say which part holds the logits, such as output={named!r}"
    if isinstance(result, Sequence) and not isinstance(result, (str, bytes)):
        tensors = [index for index, part in enumerate(result) if isinstance(part, Tensor)]
        return f"say which part holds the logits, such as output={tensors[0] if tensors else 0}"
    if isinstance(getattr(result, "logits", None), Tensor):
        return "say which part holds the logits, such as output='logits'"
    return "give a function that takes them out as output="


def _part(result: object, output: str | int) -> object:
    """The part of `result` that `output` names.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, str):
        if isinstance(result, Mapping) and output in result:
            return result[output]
        # An object such as a named tuple or a data class; the attribute of a mapping may be one of its methods.
        if not isinstance(result, (Mapping, Tensor)) and hasattr(result, output):
            return getattr(result, output)
    elif (
        isinstance(result, Sequence)
        and not isinstance(result, (str, bytes))
        and -len(result) <= output < len(result)
    ):
        return result[output]
    hint = "; it is the logits themselves: leave output out" if isinstance(result, Tensor) else ""
    raise TypeError(f"output={output!r}: the model returned {_described(result)}{hint}")


def check_output(output: object) -> None:
    """
    Raises:
        TypeError: not a name, a number or a function.
    """
    named = isinstance(output, (str, int)) and not isinstance(output, bool)
    if not (output is None or named or callable(output)):
        raise TypeError(
            "output must be a key or attribute ('logits'), an index (0), a function of what the "
            f"model returns, or None, got {output!r}"
        )


def selector(output: Output) -> Callable[[object], Tensor]:
    """What a model returns -> its logits.

    Args:
        output: None: they are what it returns. A name: a key of a mapping or an attribute, as in the outputs of
            Hugging Face's models. A number: an index into a tuple or list. A function: it is given what the model
            returns.

    Raises:
        TypeError: `output` is none of these. The result raises it when what it selects is not a tensor.
    """
    check_output(output)

    def select(result: object) -> Tensor:
        if output is None:
            part = result
        elif isinstance(output, (str, int)):
            part = _part(result, output)
        else:
            part = output(result)
        if isinstance(part, Tensor):
            return part
        if output is None:
            raise TypeError(
                f"the model must return logits of shape [B, K], got {_described(result)}; "
                f"{_advice(result)}, or wrap it in a function that returns the logits alone"
            )
        raise TypeError(
            f"output={output!r} must give logits of shape [B, K], got {_described(part)} out of "
            f"{_described(result)}"
        )

    return select
