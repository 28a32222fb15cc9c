"""Files as torch writes them in its old format, without torch."""

import io
import pickle
import struct
import sys
import types
from collections import OrderedDict
from typing import NamedTuple

import numpy as np

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
SYSTEM = {"protocol_version": VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class FloatStorage:
    """Stands for torch.FloatStorage."""


def _rebuild_tensor_v2():
    """Stands for the function of torch._utils."""


FloatStorage.__module__, _rebuild_tensor_v2.__module__ = "torch", "torch._utils"


class Storage(NamedTuple):
    key: str
    values: np.ndarray


class View(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple
    strides: tuple


class _Saved:
    """A tensor on its way into a pickle."""

    def __init__(self, view):
        self.view = view

    def __reduce__(self):
        storage, offset, shape, strides = self.view
        return _rebuild_tensor_v2, (_Reference(storage), offset, shape, strides, False, OrderedDict())


class _Reference:
    def __init__(self, storage):
        self.storage = storage


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing):
        if isinstance(thing, _Reference):
            return ("storage", FloatStorage, thing.storage.key, "cpu", thing.storage.values.size, None)
        return None


def pickled(thing):
    """The bytes of one pickle that may name torch."""
    modules = {"torch": types.ModuleType("torch"), "torch._utils": types.ModuleType("torch._utils")}
    modules["torch"].FloatStorage, modules["torch._utils"]._rebuild_tensor_v2 = FloatStorage, _rebuild_tensor_v2
    kept = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        stream = io.BytesIO()
        _Pickler(stream, protocol=2).dump(thing)
        return stream.getvalue()
    finally:
        for name, module in kept.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def file_bytes(views, *, version=VERSION, system=SYSTEM, state=None):
    """A whole file of named views; ``state`` takes the place of the pickle of the tensors."""
    storages = {view.storage.key: view.storage for view in views.values()}
    if state is None:
        tensors = OrderedDict((name, _Saved(view)) for name, view in views.items())
        tensors._metadata = OrderedDict({"": {"version": 1}})  # as modules of torch have it
        state = pickled(tensors)
    parts = [pickled(MAGIC), pickled(version), pickled(system), state, pickled(sorted(storages))]
    for key in sorted(storages):
        values = np.asarray(storages[key].values, "<f4")
        parts.append(struct.pack("<q", values.size) + values.tobytes())
    return b"".join(parts)


def whole(key, array):
    """A view of a storage of its own, as contiguous tensors have it."""
    array = np.asarray(array, np.float32)
    return View(Storage(key, array.ravel()), 0, array.shape, tuple(stride // 4 for stride in array.strides))
