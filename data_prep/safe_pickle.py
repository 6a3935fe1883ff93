"""Read pickles of plain data without running anything inside them.

Python's own unpickler calls whatever the file names. This one is a small machine of its own: it knows the opcodes that
describe containers, text, numbers and numpy arrays, builds those itself, and refuses every other opcode and every other
name. Nothing from the file is ever imported or called. Files of several GB are memory-mapped, and arrays are views of
the map, so loading costs neither their size in memory nor the time to read them.
"""

from __future__ import annotations

import gc
import math
import mmap
import pickle
import pickletools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as short
from typing import Any, Literal, NoReturn

import numpy as np

from cmpta_lib.files import replacing

MAX_DEPTH = 64  # containers within containers; hashing much deeper ones can exhaust the interpreter's stack
# MELD's largest public file needs about 700,000. One opcode makes one small object at most, and the costliest, a
# container, takes some 200 bytes with the books kept on it: beyond the numbers and text that it really holds, no file
# takes more than about 600 MB and 15 s.
MAX_OPCODES = 3_000_000
MAX_UNFOLDED = 20_000_000  # values, were every reference a copy: whoever prints or walks the result does just that

_MAX_DIMENSIONS = 64  # numpy's own bound, checked before the sizes are multiplied
_MAX_EMPTY_SIZE = 1 << 24  # of a dimension of an array without elements: no clip is as long, no frame as wide
_SMALL_BYTES = 255  # up to here bytes are copied at once, above they stay views until something needs a copy
_LEAVES = {type(None), bool, int, float, str, bytes}
_CONTAINERS = {list, dict, tuple, np.ndarray}  # arrays too: one of dtype object holds further values
_KEYS = {str, bytes, int}
# Module and name as numpy 1 and numpy 2 write them in their pickles -> what this reader does instead of calling it.
_NAMES = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",  # how protocol 2 spells bytes
    "__builtin__ bytes": "bytes",
    "builtins bytes": "bytes",
} | {
    f"numpy.{core}.{name}": name.partition(" ")[2]
    for core in ("core", "_core")
    for name in ("multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer")
}
# What is found in place of pickles -> what to do.
_OTHER_FILES = {
    b"version https://git-lfs": "this is a Git LFS pointer: get the file itself with git lfs pull",
    b"\x1f\x8b": "this is a gzip file: unpack it",
    b"BZh": "this is a bzip2 file: unpack it",
    b"\xfd7zXZ": "this is an xz file: unpack it",
    b"PK\x03\x04": "this is a zip file, as torch.save and numpy.savez write: unpack it, or save it with pickle.dump",
    b"\x93NUMPY": "this is an array of numpy.save: save a list of dicts with pickle.dump",
    b"<": "this looks like a web page: fetch the file itself",
}
_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][0-9]{1,9}|O8?")


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
    """Read one pickle of plain data, protocol 2 to 5.

    Admitted: None, bool, int, float, str, bytes, list, dict, tuple, numpy scalars, and numpy arrays of numbers, text or
    (dtype object, not within each other) of admitted values, written by numpy 1 or 2.

    Args:
        path: the file. Leave it alone while its arrays are in use: they are read-only, perhaps unaligned views of it.
    Raises:
        UnsafePickleError: the file is truncated, claims more than it holds, or contains anything not listed above.
        FileNotFoundError: there is no such file.
    """
    was_enabled = gc.isenabled()
    gc.disable()  # with millions of containers, looking for cycles takes half the time
    try:
        with Path(path).open("rb") as file:
            if file.seek(0, 2) == 0:
                raise _Refusal("it is empty")
            return _Reader(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))).run()
    except _Refusal as refusal:
        reason = str(refusal)
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        reason = f"it is damaged ({type(error).__name__}: {str(error)[:80]})"
    finally:
        if was_enabled:
            gc.enable()
    with Path(path).open("rb") as file:
        start = file.read(_SMALL_BYTES)
    other = next((remedy for begins, remedy in _OTHER_FILES.items() if start.startswith(begins)), None)
    plain = "fetch it again, or save dicts, lists, text, numbers and numpy arrays with protocol 2 to 5"
    raise UnsafePickleError(f"{path}: not read, because {reason}; nothing was run; {other or plain}")


def save(value: object, path: str | Path, protocol: int = 4) -> None:
    """Write a pickle that `load` reads; the file appears complete or not at all."""
    with replacing(Path(path)) as partial, partial.open("wb") as file:
        pickle.dump(value, file, protocol)


class _Reader:
    """The stack machine. Every value on `stack` was built here from bytes that the file really holds.

    It is also the file from which `pickletools`' readers of arguments read: they make bytes into numbers and text.
    """

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, object] = {}
        self.handled = 0  # bytes and references copied from one value into another, or looked at one by one

    def run(self) -> object:
        if self.read(1) != pickle.PROTO:
            self.refuse("it is not a pickle of protocol 2 or later")
        if (protocol := self.read(1)[0]) > pickle.HIGHEST_PROTOCOL:
            self.refuse(f"it claims protocol {protocol}")
        for _ in range(MAX_OPCODES):
            opcode = bytes(self.read(1))
            if opcode == pickle.STOP:
                break
            if opcode not in _OPCODES:
                self.refuse(f"it holds the opcode {_ALL_OPCODES.get(opcode, hex(opcode[0]))}, which plain data never needs")
            act, read_argument = _OPCODES[opcode]
            act(self, read_argument(self)) if read_argument else act(self)
        else:
            self.refuse(f"it holds more than {MAX_OPCODES} values; keep numbers in numpy arrays")
        if len(self.stack) != 1 or self.marks or self.position != len(self.data):
            self.refuse("it does not end where its one value ends")
        values = _copied(self.stack)
        self.require_plain(values)
        return values[0]

    def refuse(self, reason: str) -> NoReturn:
        raise _Refusal(f"{reason} (at byte {self.position})")

    def read(self, count: int) -> bytes | memoryview:
        if count > len(self.data) - self.position:
            left = len(self.data) - self.position
            self.refuse(f"it is truncated: the next part claims {count} bytes, {left} are left")
        self.position += count
        view = self.data[self.position - count : self.position]
        return bytes(view) if count <= _SMALL_BYTES else view

    def two_lines(self) -> str:
        lines = bytes(self.data[self.position : self.position + _SMALL_BYTES]).split(b"\n")[:2]
        return str(self.read(len(b" ".join(lines)) + 1), "utf-8").replace("\n", " ").removesuffix(" ")

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

    def charge(self, count: int) -> None:
        """Account for work that the size of the file does not bound by itself.

        What numpy writes has each of its bytes copied or looked at three times at most, an attack one part for ever.
        """
        self.handled += count
        if self.handled > 4 * len(self.data):
            self.refuse("it uses the same parts more often than plain data need")

    def push_tuple(self, items: list) -> None:
        ahead = self.position
        ahead += {pickle.MEMOIZE[0]: 1, pickle.BINPUT[0]: 2, pickle.LONG_BINPUT[0]: 5}.get(self.data[ahead], 0)
        is_consumed = bytes(self.data[ahead : ahead + 1]) in (pickle.REDUCE, pickle.BUILD)
        self.stack.append(_Arguments(items) if is_consumed else tuple(_copied(items)))

    def grow(self, items: list, kind: type[list] | type[dict]) -> None:
        """Add to the list on top of the stack, or (keys and values alternating) to the dict there."""
        container, items = self.stack[-1], _copied(items)
        if type(container) is not kind:
            self.refuse(f"it adds to a {type(container).__name__} as to a {kind.__name__}")
        if isinstance(container, list):
            container.extend(items)
            return
        keys = items[0::2]
        if len(items) % 2 or not all(type(key) in _KEYS for key in keys):
            self.refuse("a dict has a key that is not text, bytes or a whole number")
        if not all(-(2**63) <= key < 2**63 for key in keys if type(key) is int):  # larger ones can be made to collide
            self.refuse("a dict has a whole number of more than 64 bits as its key")
        container.update(zip(keys, items[1::2], strict=True))

    def require_plain(self, values: list) -> None:
        """Go through what was built, each container once: admitted values only, none inside itself, none that unfolds."""
        measured: dict[int, tuple[int, int]] = {}  # id of a container -> levels and values in it, shared ones counted again
        entered: set[int] = set()
        waiting: list = [values]
        while waiting:
            container = waiting[-1]
            levels, count, missing = 0, 0, []
            for value in () if id(container) in measured else _inside(container):
                kind, count = type(value), count + 1
                if kind in _CONTAINERS:
                    if id(value) in measured:
                        levels, count = max(levels, measured[id(value)][0]), count + measured[id(value)][1]
                    elif value.dtype.hasobject if kind is np.ndarray else value:  # others hold nothing
                        missing.append(value)
                elif kind is str or kind is bytes:
                    count += len(value) >> 6
                elif kind not in _LEAVES and not isinstance(value, np.generic | np.dtype):
                    self.refuse(f"it stores a bare {value if kind is _Callable else kind.__name__} as a value")
            if missing:
                if id(container) in entered:
                    self.refuse("it holds a container inside itself")
                entered.add(id(container))
                waiting += missing
                continue
            if levels >= MAX_DEPTH:
                self.refuse(f"it nests more than {MAX_DEPTH} containers")
            if count > MAX_UNFOLDED:
                self.refuse(f"it repeats few values more than {MAX_UNFOLDED} times")
            measured.setdefault(id(container), (levels + 1, count))
            waiting.pop()

    # Stand-ins for the calls that numpy's pickles ask for --------------------------------------------------------
    def name(self, name: str) -> None:
        if name not in _NAMES:
            module, _, last = name.partition(" ")
            self.refuse(f"it asks for {module[:40]!r} {last[:40]!r}, which is not plain data")
        self.stack.append(_Callable(_NAMES[name]))

    def name_on_stack(self) -> None:
        names = self.pop(2)
        if not all(type(name) is str for name in names):  # not looked up: hashing nested tuples can take for ever
            self.refuse("it asks for something by a name that is not text")
        self.name(" ".join(names))

    def reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        match (called if type(called) is _Callable else None), arguments:
            case "_reconstruct", [_Callable("ndarray"), (0,), b"b"]:
                self.stack.append(_Unfinished())
            case "_frombuffer", [data, np.dtype(hasobject=False) as dtype, tuple() as shape, ("C" | "F") as order]:
                self.push_array(shape, dtype, order, data)
            case "_frombuffer", [data, np.dtype(hasobject=False) as dtype, tuple() as shape, "K", tuple() as axes]:
                self.push_array(shape, dtype, "C", data)
                self.stack.append(self.stack.pop().transpose(axes))
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
            self.stack.append(np.ndarray(shape, dtype, data, order=order))
            return
        self.charge(count)
        if any(type(value) is np.ndarray and value.dtype.hasobject for value in data):  # freed by recursion, however deep
            self.refuse("it holds an array of objects as one element of another")
        elements = np.empty(count, dtype)
        for index, value in enumerate(data):  # one by one: assigned as a whole, numpy would look into nested lists
            elements[index] = value
        # Bytes of numbers come in the order in which they lie in memory, but objects always row by row.
        self.stack.append(np.asarray(elements.reshape(shape), order=order))

    def require_unicode(self, dtype: np.dtype, data: bytes | memoryview) -> None:
        """numpy looks at the code points of text only when they are read, and then breaks off with a SystemError."""
        if dtype.kind == "U" and len(data):
            self.charge(len(data))  # many arrays may be views of one part of the file
            codes = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
            if codes.max() > sys.maxunicode:
                self.refuse("text holds something that is not Unicode")


def _copied(values: list) -> list:
    return [bytes(value) if type(value) is memoryview else value for value in values]


def _inside(container: Any) -> Iterable[Any]:
    if isinstance(container, np.ndarray):
        return container.ravel().tolist()
    return container.values() if isinstance(container, dict) else container


_ALL_OPCODES = {opcode.code.encode("latin1"): opcode.name for opcode in pickletools.opcodes}
_ACTIONS: dict[str, Callable[..., object]] = {
    **dict.fromkeys(
        "BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 "
        "BYTEARRAY8".split(),
        lambda r, value: r.stack.append(value),
    ),
    "FRAME": lambda r, size: None,
    "MARK": lambda r: r.marks.append(len(r.stack)),
    "NONE": lambda r: r.stack.append(None),
    "NEWTRUE": lambda r: r.stack.append(True),
    "NEWFALSE": lambda r: r.stack.append(False),
    "EMPTY_LIST": lambda r: r.stack.append([]),
    "EMPTY_DICT": lambda r: r.stack.append({}),
    "EMPTY_TUPLE": lambda r: r.push_tuple([]),
    "TUPLE": lambda r: r.push_tuple(r.since_mark()),
    "TUPLE1": lambda r: r.push_tuple(r.pop(1)),
    "TUPLE2": lambda r: r.push_tuple(r.pop(2)),
    "TUPLE3": lambda r: r.push_tuple(r.pop(3)),
    "APPEND": lambda r: r.grow(r.pop(1), list),
    "APPENDS": lambda r: r.grow(r.since_mark(), list),
    "SETITEM": lambda r: r.grow(r.pop(2), dict),
    "SETITEMS": lambda r: r.grow(r.since_mark(), dict),
    "MEMOIZE": lambda r: r.memoize(len(r.memo)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Reader.memoize),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _Reader.recall),
    "GLOBAL": _Reader.name,
    "STACK_GLOBAL": _Reader.name_on_stack,
    "REDUCE": _Reader.reduce,
    "BUILD": _Reader.build,
}
# What reads the argument of each opcode: pickletools' own, but a bytearray as bytes, without a copy, and names within bounds.
_READERS: dict[str, Callable[[Any], Any]] = {opcode.name: opcode.arg.reader for opcode in pickletools.opcodes if opcode.arg}
_READERS |= {"BYTEARRAY8": pickletools.read_bytes8, "GLOBAL": _Reader.two_lines}
_OPCODES: dict[bytes, tuple[Callable[..., object], Callable[[Any], Any] | None]] = {
    code: (_ACTIONS[name], _READERS.get(name)) for code, name in _ALL_OPCODES.items() if name in _ACTIONS
}
