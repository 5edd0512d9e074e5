"""Read numbers and arrays of numpy from a pickle without numpy's own unpickling.

numpy's types take a state from the file without checking it, so a crafted file could turn a number into a pointer. Here
only plain numbers are made, from bytes of the right length.
"""

import pickle
from typing import Any, Final

import numpy as np
import numpy.typing as npt

KINDS: Final = "biuf"
"""Booleans, integers and floating-point numbers."""
STATE_LENGTH: Final = 8
"""Number of entries in the state of a data type without units."""


class PlainDtype:
    """A data type of plain numbers, used in place of ``numpy.dtype``.

    Args:
        name: Its name in numpy, such as "f8".
        align: Ignored: plain numbers have no fields.
        copy: Ignored.
    """

    def __init__(self, name: str, align: bool = False, copy: bool = False) -> None:
        try:
            self.dtype: np.dtype[Any] = np.dtype(name)
        except (TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"expected a data type, got {name!r}") from error
        if self.dtype.kind not in KINDS:
            raise pickle.UnpicklingError(f"expected a data type of numbers, got {name!r}")

    def __setstate__(self, state: Any) -> None:
        plain = isinstance(state, tuple) and len(state) == STATE_LENGTH
        if not plain or state[1] not in ("<", ">", "|", "=") or state[2:] != (None, None, None, -1, -1, 0):
            raise pickle.UnpicklingError(f"expected a plain data type, got the state {state!r}")
        self.dtype = self.dtype.newbyteorder(state[1])


class PlainArray(npt.NDArray[Any]):
    """An array of plain numbers, used in place of ``numpy.ndarray``; it is written as an array of numpy again."""

    def __setstate__(self, state: Any) -> None:
        """Set shape, data type and bytes, and check that they fit together."""
        try:
            _, shape, kind, is_fortran, data = state
            # This makes a new array, and fails if there are too few or too many bytes.
            array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if is_fortran else "C")
        except (AttributeError, TypeError, ValueError) as error:
            raise pickle.UnpicklingError(f"expected the bytes of an array of numbers ({error})") from error
        super().__setstate__((1, array.shape, array.dtype, False, array.tobytes()))

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()


def empty_array(kind: Any, shape: Any, code: Any) -> PlainArray:
    """Begin an array, in place of numpy's ``_reconstruct``; its state follows.

    Raises:
        UnpicklingError: It would not become an array of numbers.
    """
    if kind is not PlainArray or shape != (0,):
        raise pickle.UnpicklingError(f"expected an array, got {kind!r} of shape {shape!r}")
    return PlainArray((0,), dtype=np.uint8)


def scalar(kind: Any, data: Any) -> np.generic:
    """Make one number, in place of numpy's ``scalar``.

    Raises:
        UnpicklingError: The bytes are not those of one number.
    """
    try:
        (number,) = np.frombuffer(data, kind.dtype)
    except (AttributeError, TypeError, ValueError) as error:
        raise pickle.UnpicklingError(f"expected the bytes of a number ({error})") from error
    value: np.generic = number
    return value


def no_bytes() -> bytes:
    """Make the bytes of an empty array, in place of ``bytes``."""
    return b""


def allowed_globals() -> list[tuple[Any, str]]:
    """Return the functions that ``torch.load`` may call, each under its names in numpy 1 and 2."""
    found: list[tuple[Any, str]] = [(PlainDtype, "numpy.dtype"), (PlainArray, "numpy.ndarray")]
    found += [(no_bytes, f"{module}.bytes") for module in ("builtins", "__builtin__")]
    for package in ("numpy.core", "numpy._core"):
        found += [(scalar, f"{package}.multiarray.scalar"), (empty_array, f"{package}.multiarray._reconstruct")]
    return found
