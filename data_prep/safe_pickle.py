"""Read pickles of plain data without running anything inside them.

Python's own unpickler calls whatever the file names. This one is a small machine of its own: it knows the opcodes that
describe containers, text, numbers and numpy arrays, builds those itself, and refuses every other opcode and every other
name. Nothing from the file is ever imported or called. Files of several GB are memory-mapped, and arrays are views of
the map, so loading costs neither their size in memory nor the time to read them.
"""

from __future__ import annotations

import gc
import gzip
import math
import mmap
import pickle
import pickletools
import re
import struct
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Literal, NoReturn

import numpy as np

MAX_DEPTH = 64  # containers within containers; hashing much deeper ones can exhaust the interpreter's stack
# MELD's largest public file needs about 700,000. One opcode makes one small object at most, and the costliest, a
# container, takes some 200 bytes with the books kept on it: beyond the numbers and text that it really holds, no file
# takes more than about 600 MB and 6 s.
MAX_OPCODES = 3_000_000
MAX_UNFOLDED = 20_000_000  # values, were every reference a copy: whoever prints or walks the result does just that
MAX_GZIP_BYTES = 1 << 30  # unpacked; an honest compressed file may be larger, a bomb certainly is

_MAX_DIMENSIONS = 64  # numpy's own bound, checked before the sizes are multiplied
_MAX_EMPTY_SIZE = 1 << 24  # of a dimension of an array without elements: no clip is as long, no frame as wide
_SMALL_BYTES = 255  # up to here bytes are copied at once, above they stay views until something needs a copy
_LEAVES = {type(None), bool, int, float, str, bytes}
_CONTAINERS = {list, dict, tuple, np.ndarray}  # arrays too: one of dtype object holds further values
_KEYS = {str, bytes, int}
_NOTHING_INSIDE = (0, 0)
# Only for the words of a refusal: names that no data file holds by accident. All others are refused just the same.
_HARMFUL = re.compile(
    r"(os|posix|nt|subprocess|pty|shutil|socket|sys|ctypes|runpy|importlib|marshal|_?pickle|code|operator|functools)\."
    r"|(builtins|__builtin__)\.(eval|exec|compile|__import__|getattr|setattr|open|file|apply|breakpoint|input)$"
)
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][0-9]{1,9}|O8?")
# What numpy 1 and numpy 2 name in their pickles -> what this reader does instead of calling it.
_NAMES = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",  # how protocol 2 spells bytes
    ("__builtin__", "bytes"): "bytes",
    ("builtins", "bytes"): "bytes",
} | {
    (f"numpy.{core}.{module}", name): name
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class UnsafePickleError(ValueError):
    """The file is not a pickle of plain data; the message names the file, the reason and what to do."""


class _Refusal(Exception):
    """Why the machine stopped; `load` adds the file."""


class _Callable(str):
    """A name of `_NAMES`' right side, on the stack in place of the thing itself."""


class _Arguments(list):
    """A tuple that the next opcode consumes, so it may hold views of the file and names."""


@dataclass(eq=False)
class _Unfinished:
    """An array or dtype between its REDUCE and its BUILD."""

    code: str | None = None  # of a dtype, such as "f4"; None for an array
    memo_keys: list[int] = field(default_factory=list)


def load(path: str | Path) -> object:
    """Read one pickle of plain data, protocol 2 to 5; a name ending in `.gz` is unpacked first.

    Admitted: None, bool, int, float, str, bytes, list, dict, tuple, numpy scalars, and numpy arrays of numbers, text or
    (dtype object) of admitted values, written by numpy 1 or 2.

    Args:
        path: the file. Leave it alone while its arrays are in use: they are read-only, perhaps unaligned views of it.
    Raises:
        UnsafePickleError: the file is truncated, claims more than it holds, or contains anything not listed above.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    try:
        reader, enabled = _Reader(_content(path)), gc.isenabled()
        gc.disable()  # there are no cycles, and with millions of containers looking for them takes half the time
        try:
            return reader.run()
        except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
            reader.refuse(f"it is damaged ({type(error).__name__}: {str(error)[:200]})")
        finally:
            if enabled:
                gc.enable()
    except _Refusal as reason:
        raise UnsafePickleError(
            f"{path}: not read, because {reason}. Only containers, text, numbers and numpy arrays are admitted, and "
            "nothing was run. Fetch the file again if it may be incomplete; if you made it, save plain values with "
            "protocol 2 to 5."
        ) from None


def save(value: object, path: str | Path, protocol: int = 4) -> None:
    """Write a pickle that `load` reads; the file appears complete or not at all."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        pickle.dump(value, file, protocol)
    partial.replace(path)


def _content(path: Path) -> memoryview:
    if path.suffix != ".gz":
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise _Refusal("it is empty")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    content = bytearray()
    with gzip.open(path) as file:
        try:
            while chunk := file.read(1 << 20):
                content += chunk
                if len(content) > MAX_GZIP_BYTES:
                    raise _Refusal(f"it unpacks to more than {MAX_GZIP_BYTES} bytes; unpack it yourself if so")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise _Refusal(f"it does not unpack ({error})") from None
    return memoryview(content).toreadonly()


class _Reader:
    """The stack machine. Every value on `stack` was built here from bytes that the file really holds."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        # id of each container with anything in it -> levels of containers below it, and values in it, those of shared
        # ones counted again
        self.inside: dict[int, tuple[int, int]] = {}
        self.handled = 0  # bytes and references copied from one value into another, or looked at one by one
        self.stored: set[int] = set()  # ids of containers inside another: they may not grow any more, so no cycles

    def run(self) -> object:
        if bytes(self.take(1)) != pickle.PROTO:
            self.refuse("it is not a pickle of protocol 2 or later")
        if (protocol := self.integer(1)) > pickle.HIGHEST_PROTOCOL:
            self.refuse(f"it claims protocol {protocol}")
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == pickle.STOP[0]:
                break
            if opcode not in _OPCODES:
                known = pickletools.code2op.get(chr(opcode))  # type: ignore[attr-defined]  # missing in typeshed
                self.refuse(f"it holds the opcode {known.name if known else hex(opcode)}, which plain data never needs")
            _OPCODES[opcode](self)
        else:
            self.refuse(f"it holds more than {MAX_OPCODES} values; keep numbers in numpy arrays")
        if len(self.stack) != 1 or self.marks or self.position != len(self.data):
            self.refuse("it does not end where its one value ends")
        self.check(self.stack)
        return self.stack[0]

    def refuse(self, reason: str) -> NoReturn:
        raise _Refusal(f"{reason} (at byte {self.position})")

    # Reading -----------------------------------------------------------------------------------------------------
    def take(self, count: int) -> memoryview:
        if count > len(self.data) - self.position:
            left = len(self.data) - self.position
            self.refuse(f"it is truncated: the next part claims {count} bytes, {left} are left")
        self.position += count
        return self.data[self.position - count : self.position]

    def integer(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def text(self, width: int) -> str:
        return str(self.take(self.integer(width)), "utf-8", "surrogatepass")

    def payload(self, width: int) -> bytes | memoryview:
        view = self.take(self.integer(width))
        return bytes(view) if len(view) <= _SMALL_BYTES else view

    def line(self) -> str:
        head = bytes(self.data[self.position : self.position + 256]).partition(b"\n")[0]
        return str(self.take(len(head) + 1)[:-1], "utf-8")

    # Stack, memo and containers ----------------------------------------------------------------------------------
    def pop(self, count: int) -> list:
        return [self.stack.pop() for _ in range(count)][::-1]

    def since_mark(self) -> list:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def memoize(self, key: int) -> None:
        self.memo[key] = value = self.stack[-1]
        if type(value) is _Unfinished:
            value.memo_keys.append(key)

    def recall(self, key: int) -> None:
        value = self.memo[key]
        if type(value) is memoryview:  # copied once, however often the file asks for it; but it may have many keys
            self.charge(len(value))
            self.memo[key] = value = bytes(value)
        if type(value) in (_Arguments, _Unfinished):
            self.refuse("it refers to an array before that array is complete")
        self.stack.append(value)

    def check(self, values: list) -> tuple[int, int]:
        """Make sure that `values` may be stored in a container; return the levels and values that this adds to it."""
        deepest = total = 0
        for index, value in enumerate(values):
            kind = type(value)
            total += 1
            if kind in _CONTAINERS:
                self.stored.add(id(value))
                levels, values_inside = self.inside.get(id(value), _NOTHING_INSIDE)
                deepest = max(deepest, levels)
                total += values_inside
            elif kind is str or kind is bytes:
                total += len(value) >> 6
            elif kind is memoryview:
                values[index] = bytes(value)
            elif kind not in _LEAVES and not isinstance(value, np.generic | np.dtype):
                self.refuse(f"it stores a bare {value if kind is _Callable else kind.__name__} as a value")
        if deepest >= MAX_DEPTH:
            self.refuse(f"it nests more than {MAX_DEPTH} containers")
        if total > MAX_UNFOLDED:
            self.refuse(f"it repeats few values more than {MAX_UNFOLDED} times")
        return deepest + 1, total

    def charge(self, count: int) -> None:
        """Account for work that the size of the file does not bound by itself.

        What numpy writes has each of its bytes copied or looked at three times at most, an attack one part for ever.
        """
        self.handled += count
        if self.handled > 4 * len(self.data):
            self.refuse("it uses the same parts more often than plain data need")

    def push_container(self, container: list | dict | tuple | np.ndarray, depth: int = 0, total: int = 0) -> None:
        key = id(container)
        self.stored.discard(key)  # the id of a container that is gone may return
        if total:
            self.inside[key] = depth, total
        else:
            self.inside.pop(key, None)
        self.stack.append(container)

    def push_tuple(self, items: list) -> None:
        ahead = self.position
        ahead += {pickle.MEMOIZE[0]: 1, pickle.BINPUT[0]: 2, pickle.LONG_BINPUT[0]: 5}.get(self.data[ahead], 0)
        if bytes(self.data[ahead : ahead + 1]) in (pickle.REDUCE, pickle.BUILD):
            self.stack.append(_Arguments(items))
        else:
            depth, total = self.check(items)
            self.push_container(tuple(items), depth, total)

    def grow(self, items: list, kind: type[list] | type[dict]) -> None:
        """Add to the list on top of the stack, or (keys and values alternating) to the dict there."""
        container = self.stack[-1]
        values = items[1::2] if kind is dict else items
        depth, total = self.check(values)
        if type(container) is not kind or id(container) in self.stored:
            self.refuse(f"it adds to a {type(container).__name__} that is already complete")
        levels, values_inside = self.inside.get(id(container), _NOTHING_INSIDE)
        if values_inside + total > MAX_UNFOLDED:
            self.refuse(f"it repeats few values more than {MAX_UNFOLDED} times")
        if total:
            self.inside[id(container)] = max(depth, levels), values_inside + total
        if isinstance(container, list):
            container.extend(values)
            return
        keys = [bytes(key) if type(key) is memoryview else key for key in items[0::2]]
        if len(keys) != len(values) or not all(type(key) in _KEYS for key in keys):
            self.refuse("a dict has a key that is not text, bytes or a whole number")
        if not all(-(2**63) <= key < 2**63 for key in keys if type(key) is int):  # larger ones can be made to collide
            self.refuse("a dict has a whole number of more than 64 bits as its key")
        container.update(zip(keys, values, strict=True))

    # Stand-ins for the calls that numpy's pickles ask for --------------------------------------------------------
    def name(self, module: object, name: object) -> None:
        if type(module) is not str or type(name) is not str:  # not looked up: hashing nested tuples can take for ever
            self.refuse("it asks for something by a name that is not text")
        if (module, name) not in _NAMES:
            reason = "could run code" if _HARMFUL.match(f"{module}.{name}") else "is not plain data"
            self.refuse(f"it asks for {module[:80]!r} {name[:80]!r}, which {reason}")
        self.stack.append(_Callable(_NAMES[module, name]))

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        match (called if type(called) is _Callable else None), arguments:
            case "_reconstruct", [_Callable("ndarray"), (0,), b"b"]:
                self.stack.append(_Unfinished())
            case "_frombuffer", [data, np.dtype(hasobject=False) as dtype, tuple() as shape, ("C" | "F") as order]:
                self.push_array(shape, dtype, order, data)
            case "_frombuffer", [data, np.dtype(hasobject=False) as dtype, tuple() as shape, "K", tuple() as axes]:
                self.push_array(shape, dtype, "C", data)
                self.push_container(self.stack.pop().transpose(axes), total=1)
            case "dtype", [str(code), _, _] if _DTYPE.fullmatch(code):
                self.stack.append(_Unfinished(code))
            case "dtype", [str(code), _, _]:
                self.refuse(f"it holds an array of type {code[:80]!r} (structured and dated arrays are not read)")
            case "scalar", [np.dtype(hasobject=False) as dtype, bytes() | memoryview() as data]:
                if len(data) != dtype.itemsize:
                    self.refuse(f"a number of type {dtype} comes with {len(data)} bytes")
                self.charge(len(data))
                self.require_unicode(dtype, data)
                self.stack.append(np.ndarray((), dtype, data)[()])
            case "encode", [str(text), "latin1"]:
                self.charge(len(text))
                self.stack.append(text.encode("latin1"))
            case "bytes", []:
                self.stack.append(b"")
            case _:
                self.refuse(f"it calls {called if type(called) is _Callable else 'a value'} in an unexpected way")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack.pop()
        if type(target) is not _Unfinished or type(state) is not _Arguments:
            self.refuse(f"it changes the state of a {type(target).__name__}")
        match target.code, state:
            case None, [1, tuple() as shape, np.dtype() as dtype, bool(fortran), data]:
                self.push_array(shape, dtype, "F" if fortran else "C", data)
            case str(code), [3, ("<" | ">" | "|" | "=") as byte_order, None, None, None, int(), int(), int()]:
                self.stack.append(np.dtype(byte_order + code))
            case _:
                self.refuse("an array or its type has an unexpected form")
        for key in target.memo_keys:
            self.memo[key] = self.stack[-1]

    def count(self, shape: tuple) -> int:
        """How many elements an array of this shape has; no product that could overflow or take for ever."""
        if not all(type(size) is int for size in shape):  # not shown: whatever stands there may be long to print
            self.refuse("an array claims a shape that does not consist of whole numbers")
        most = _MAX_EMPTY_SIZE if 0 in shape else len(self.data)
        if len(shape) > _MAX_DIMENSIONS or not all(0 <= size <= most for size in shape):
            self.refuse(f"an array claims the shape {short(shape)}, more than the whole file holds")
        return math.prod(shape)

    def push_array(self, shape: tuple, dtype: np.dtype, order: Literal["C", "F"], data: object) -> None:
        count, plain = self.count(shape), dtype.itemsize > 0 and not dtype.hasobject
        if not (dtype.hasobject and type(data) is list or plain and (type(data) is bytes or type(data) is memoryview)):
            self.refuse(f"an array of type {dtype} comes with a {type(data).__name__}")
        if len(data) != count * (dtype.itemsize if plain else 1):
            self.refuse(f"an array claims {count} elements of type {dtype}, but holds {len(data)} bytes or objects")
        if not isinstance(data, list):
            self.require_unicode(dtype, data)
            return self.push_container(np.ndarray(shape, dtype, data, order=order), total=1)
        self.charge(count)
        elements = np.empty(count, dtype)
        for index, value in enumerate(data):  # one by one: assigned as a whole, numpy would look into nested lists
            elements[index] = value
        # Bytes of numbers come in the order in which they lie in memory, but objects always row by row.
        array = np.asarray(elements.reshape(shape), order=order)
        self.push_container(array, *self.inside.get(id(data), _NOTHING_INSIDE))

    def require_unicode(self, dtype: np.dtype, data: bytes | memoryview) -> None:
        """numpy looks at the code points of text only when they are read, and then breaks off with a SystemError."""
        if dtype.kind == "U" and len(data):
            self.charge(len(data))  # many arrays may be views of one part of the file
            codes = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
            if codes.max() > sys.maxunicode:
                self.refuse("text holds something that is not Unicode")


_OPCODES: dict[int, Callable[[_Reader], object]] = {
    opcode[0]: action
    for opcode, action in {
        pickle.FRAME: lambda r: r.take(8),
        pickle.MARK: lambda r: r.marks.append(len(r.stack)),
        pickle.NONE: lambda r: r.stack.append(None),
        pickle.NEWTRUE: lambda r: r.stack.append(True),
        pickle.NEWFALSE: lambda r: r.stack.append(False),
        pickle.BININT: lambda r: r.stack.append(r.integer(4, signed=True)),
        pickle.BININT1: lambda r: r.stack.append(r.integer(1)),
        pickle.BININT2: lambda r: r.stack.append(r.integer(2)),
        pickle.LONG1: lambda r: r.stack.append(r.integer(r.integer(1), signed=True)),
        pickle.BINFLOAT: lambda r: r.stack.append(struct.unpack(">d", r.take(8))[0]),
        pickle.SHORT_BINUNICODE: lambda r: r.stack.append(r.text(1)),
        pickle.BINUNICODE: lambda r: r.stack.append(r.text(4)),
        pickle.BINUNICODE8: lambda r: r.stack.append(r.text(8)),
        pickle.SHORT_BINBYTES: lambda r: r.stack.append(r.payload(1)),
        pickle.BINBYTES: lambda r: r.stack.append(r.payload(4)),
        **dict.fromkeys((pickle.BINBYTES8, pickle.BYTEARRAY8), lambda r: r.stack.append(r.payload(8))),
        pickle.EMPTY_LIST: lambda r: r.push_container([]),
        pickle.EMPTY_DICT: lambda r: r.push_container({}),
        pickle.EMPTY_TUPLE: lambda r: r.push_tuple([]),
        pickle.TUPLE: lambda r: r.push_tuple(r.since_mark()),
        pickle.TUPLE1: lambda r: r.push_tuple(r.pop(1)),
        pickle.TUPLE2: lambda r: r.push_tuple(r.pop(2)),
        pickle.TUPLE3: lambda r: r.push_tuple(r.pop(3)),
        pickle.APPEND: lambda r: r.grow(r.pop(1), list),
        pickle.APPENDS: lambda r: r.grow(r.since_mark(), list),
        pickle.SETITEM: lambda r: r.grow(r.pop(2), dict),
        pickle.SETITEMS: lambda r: r.grow(r.since_mark(), dict),
        pickle.BINPUT: lambda r: r.memoize(r.integer(1)),
        pickle.LONG_BINPUT: lambda r: r.memoize(r.integer(4)),
        pickle.MEMOIZE: lambda r: r.memoize(len(r.memo)),
        pickle.BINGET: lambda r: r.recall(r.integer(1)),
        pickle.LONG_BINGET: lambda r: r.recall(r.integer(4)),
        pickle.GLOBAL: lambda r: r.name(r.line(), r.line()),
        pickle.STACK_GLOBAL: lambda r: r.name(*r.pop(2)),
        pickle.REDUCE: lambda r: r.reduce(),
        pickle.BUILD: lambda r: r.build(),
    }.items()
}
