"""Weights files of torch's old format, read without torch and without running anything that they say.

Such a file is four pickles (a magic number, the version, the byte order, the state) and a list of storages, followed by
the bytes of each storage. A pickle is a program: here its instructions are interpreted one by one, and only those are
known that build dictionaries of tensors. A tensor is a view of its storage, with an offset and strides of its own.
"""

import hashlib
import io
import pickletools
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fgis.errors import UserError

MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."  # a pickle of the number that marks such a file
VERSION = 1001
STORAGES = {
    "torch DoubleStorage": "<f8",
    "torch FloatStorage": "<f4",
    "torch HalfStorage": "<f2",
    "torch LongStorage": "<i8",
    "torch IntStorage": "<i4",
}
DICTIONARY, TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"


class StateFile(NamedTuple):
    """What a weights file holds."""

    tensors: dict[str, np.ndarray]  # read-only views of its bytes, strided as they lie there
    sha256: str  # of the file


class _Symbol(NamedTuple):
    name: str  # of what a pickle imports; nothing is imported


class _Storage(NamedTuple):
    key: str
    dtype: str
    size: int  # elements


class _View(NamedTuple):
    storage: _Storage
    offset: int  # in elements, as are the strides
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_file(path: Path) -> StateFile:
    """Read the tensors of a file that ``torch.save`` wrote in its old format from a dictionary of tensors.

    Raises:
      UserError: the file is of another kind, is damaged, or holds anything but numbers in tensors, such as code.
      OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        start = file.read(len(MAGIC))
        if start[:2] == b"PK":
            raise UserError(
                f"{path}: holds weights in torch's zip format; write it again by torch.save(..., "
                "_use_new_zipfile_serialization=False)"
            )
        if start != MAGIC:
            raise UserError(f"{path}: is no weights file of torch (old format); name the right file")
        data = start + file.read()
    try:
        tensors = _read_tensors(data)
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, struct.error) as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"{path}: does not hold tensors alone, or is damaged ({reason}); install or fetch it again"
        ) from error
    return StateFile(tensors, hashlib.sha256(data).hexdigest())


def _read_tensors(data: bytes) -> dict[str, np.ndarray]:
    stream = io.BytesIO(data)
    stream.seek(len(MAGIC))
    if _interpret(stream) != VERSION:
        raise ValueError(f"its version is not {VERSION}")
    if not _interpret(stream)["little_endian"]:
        raise ValueError("its numbers are big-endian")
    state, keys = _interpret(stream), _interpret(stream)
    if not isinstance(state, dict) or not all(isinstance(view, _View) for view in state.values()):
        raise ValueError("it holds something else than a dictionary of tensors")
    storages = {view.storage.key: view.storage for view in state.values()}
    buffers = {key: _next_storage(stream, storages[key]) for key in keys}
    if stream.read(1):
        raise ValueError("bytes follow the last storage")
    return {name: _strided_array(view, buffers[view.storage.key]) for name, view in state.items()}


def _next_storage(stream: io.BytesIO, storage: _Storage) -> memoryview:
    """The bytes of the next storage, which its number of elements precedes."""
    (size,) = struct.unpack("<q", stream.read(8))
    if size != storage.size:
        raise ValueError(f"a storage of {storage.size} numbers is announced, {size} follow")
    start, length = stream.tell(), size * np.dtype(storage.dtype).itemsize
    if stream.seek(length, io.SEEK_CUR) > len(stream.getbuffer()):
        raise ValueError("the file is cut off")
    return stream.getbuffer()[start : start + length].toreadonly()


def _strided_array(view: _View, buffer: memoryview) -> np.ndarray:
    """The view as an array; NumPy refuses one that reaches beyond its storage."""
    dtype = np.dtype(view.storage.dtype)
    strides = tuple(stride * dtype.itemsize for stride in view.strides)
    return np.ndarray(view.shape, dtype, buffer, view.offset * dtype.itemsize, strides)


def _interpret(stream: io.BytesIO) -> Any:
    """Carry out the instructions of one pickle; one that is not needed for tensors is refused."""
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each mark
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(stream):
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[opcode.name]())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS":
                items, stack = stack, outer.pop()
                _gather(opcode.name, stack, items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                _gather("TUPLE", stack, _pop(stack, int(opcode.name[-1])))
            case "APPEND":
                _gather("APPENDS", stack, _pop(stack, 1))
            case "SETITEM":
                _gather("SETITEMS", stack, _pop(stack, 2))
            case "GLOBAL":
                stack.append(_find(str(argument)))
            case "BINPERSID":
                stack.append(_refer(stack.pop()))
            case "REDUCE":
                stack.append(_call(*_pop(stack, 2)))
            case "BUILD":  # attributes of the dictionary of tensors: versions of the modules, which nothing reads
                stack.pop()
            case other:
                raise ValueError(f"its pickle holds the instruction {other}, which no tensor needs")
    raise ValueError("a pickle has no end")


def _pop(stack: list[Any], count: int) -> list[Any]:
    items = stack[-count:]
    if len(items) < count:
        raise ValueError("a pickle takes what it has not put")
    del stack[-count:]
    return items


def _gather(opcode: str, stack: list[Any], items: list[Any]) -> None:
    """Push the items as one tuple, or put them into the list or the dictionary on top of the stack."""
    if opcode == "TUPLE":
        stack.append(tuple(items))
    elif opcode == "APPENDS":
        stack[-1].extend(items)
    else:
        keys, values = items[::2], items[1::2]
        if not all(isinstance(key, str) for key in keys):
            raise ValueError("a dictionary has a key that is no text")
        stack[-1].update(zip(keys, values, strict=True))


def _find(name: str) -> _Symbol:
    if name not in (DICTIONARY, TENSOR, *STORAGES):
        raise ValueError(f"its pickle names {name.replace(' ', '.', 1)!r}, which no tensor needs")
    return _Symbol(name)


def _refer(reference: Any) -> _Storage:
    """A storage, which the file describes as ("storage", its type, its name, the device, its size, ...)."""
    if not isinstance(reference, tuple) or len(reference) < 5:
        raise ValueError("its pickle refers to something that is no storage")
    kind, symbol, key, _, size, *_ = reference
    if kind != "storage" or not isinstance(symbol, _Symbol) or symbol.name not in STORAGES:
        raise ValueError("its pickle refers to something that is no storage")
    if not isinstance(key, str) or not isinstance(size, int) or size < 0:
        raise ValueError("a storage has no name or no size")
    return _Storage(key, STORAGES[symbol.name], size)


def _call(function: Any, arguments: Any) -> Any:
    """A new dictionary, or a tensor; nothing else can be called."""
    if not isinstance(function, _Symbol) or not isinstance(arguments, tuple):
        raise ValueError("its pickle calls what cannot be called")
    if function.name == DICTIONARY and not arguments:
        return {}
    if function.name == TENSOR and len(arguments) >= 4:
        storage, offset, shape, strides, *_ = arguments
        whole = all(isinstance(number, int) for number in (offset, *shape, *strides))
        if isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple) and whole:
            return _View(storage, offset, shape, strides)
    raise ValueError(f"its pickle calls {function.name.replace(' ', '.')} with unknown arguments")
