"""Host arrays through DLPack, bfloat16 included (which ``numpy.from_dlpack`` does not take)."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captree.errors import InvalidTypeError

_CPU = 1
_BFLOAT = 4


class _Tensor(ctypes.Structure):
    """``DLTensor`` of dlpack.h; a ``DLManagedTensor`` begins with one."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Holder:
    """Memory of a capsule for ``numpy.asarray``; the array keeps it, and it keeps the capsule.

    The capsule is never renamed to ``used_dltensor``, so that its own destructor calls the producer's deleter.
    """

    def __init__(self, capsule: Any, interface: dict[str, Any]) -> None:
        self._capsule = capsule
        self.__array_interface__ = interface


def from_dlpack(producer: Any) -> tuple[NDArray[Any], bool]:
    """A numpy view of a host array that speaks DLPack, and whether its uint16 are bfloat16 bit patterns.

    Raises:
        InvalidTypeError: an element type that numpy has no name for.
    """
    with suppress(RuntimeError, BufferError, TypeError, ValueError):
        return np.from_dlpack(producer), False
    try:
        capsule = producer.__dlpack__()
    except Exception as error:
        raise InvalidTypeError(f"cannot read {type(producer).__name__} through DLPack: {error}") from error
    return _view_bfloat16(capsule, type(producer).__name__), True


def _view_bfloat16(capsule: Any, kind: str) -> NDArray[np.uint16]:
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.restype = ctypes.c_void_p
    get_pointer.argtypes = (ctypes.py_object, ctypes.c_char_p)
    try:
        address = get_pointer(capsule, b"dltensor")
    except (ValueError, ctypes.ArgumentError) as error:
        raise InvalidTypeError(f"cannot read {kind} through DLPack: {error}") from error
    tensor = _Tensor.from_address(address)
    if (tensor.code, tensor.bits, tensor.lanes) != (_BFLOAT, 16, 1):
        raise InvalidTypeError(
            f"expected float16, bfloat16, float32 or float64, got {kind} of DLPack type {tensor.code} "
            f"with {tensor.bits} bits and {tensor.lanes} lanes"
        )
    if tensor.device_type != _CPU:
        raise InvalidTypeError(f"expected {kind} in host memory, got DLPack device type {tensor.device_type}")
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if 0 in shape:
        return np.empty(shape, np.uint16)
    interface = {
        "version": 3,
        "typestr": np.dtype(np.uint16).str,
        "shape": shape,
        "strides": tuple(2 * tensor.strides[i] for i in range(tensor.ndim)) if tensor.strides else None,
        "data": (tensor.data + tensor.byte_offset, True),
    }
    return np.asarray(_Holder(capsule, interface))
