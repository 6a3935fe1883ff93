"""`safe_pickle` reads plain data as `pickle` does, and runs nothing, whatever the file says."""

from __future__ import annotations

import gc
import io
import pickle
import pickletools
import random
import struct
import sys
import time
import tracemalloc
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from data_prep import safe_pickle
from data_prep.safe_pickle import UnsafePickleError, load

HARMLESS_EVENTS = {"open", "mmap.__new__", "builtins.id"}
_events: list[str] | None = None


def _record(event: str, _: tuple) -> None:
    if _events is not None and event not in HARMLESS_EVENTS:
        _events.append(event)


sys.addaudithook(_record)  # cannot be removed, so it idles outside `refuse`


@pytest.fixture
def write(tmp_path: Path):
    def write(content: bytes, name: str = "file.pkl") -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


@pytest.fixture
def refuse(write):
    """Load hostile bytes; require the one error, that nothing ran and that little memory was taken; return its text."""

    def refuse(content: bytes, name: str = "file.pkl") -> str:
        global _events
        path = write(content, name)
        tracemalloc.start()
        _events = events = []
        try:
            with pytest.raises(UnsafePickleError) as caught:
                load(path)
        finally:
            _events = None
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert events == [], "something was imported, compiled or run"
        assert peak < 4_000_000 + 300 * len(content)
        message = str(caught.value)
        assert str(path) in message and "nothing was run" in message and len(message) < 350
        return message

    return refuse


def loaded_with_peak(path: Path) -> tuple[object, int]:
    """What the file holds, and the most memory in bytes that reading it took."""
    tracemalloc.start()
    loaded = load(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return loaded, peak


def test_the_audit_hook_sees_what_an_ordinary_unpickler_would_run():
    global _events
    _events = events = []
    try:
        pickle.loads(b"cbuiltins\neval\n(V1+1\ntR.")
    finally:
        _events = None
    assert {"pickle.find_class", "exec"} <= set(events)


# Plain data ------------------------------------------------------------------------------------------------------
ARRAYS = [
    *(np.arange(-3, 9).reshape(3, 4).astype(kind) for kind in ("i1", "i2", "i4", "i8", "f2", "f4", "f8", "c8", "c16")),
    *(np.arange(12).reshape(3, 4).astype(kind) for kind in ("u1", "u2", "u4", "u8", "?", ">f4", ">i8")),
    np.asfortranarray(np.arange(12.0).reshape(3, 4)),
    np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    np.arange(12.0)[::2],
    np.array(3.5),
    np.zeros((0, 25), np.float32),
    np.zeros((5, 0), np.float32),
    np.linspace(0, 1, 1000),
    np.array(["happy", "", "好"]),
    np.array([b"ab", b"c"]),
    np.asfortranarray([["a", "好"], ["𝄞", "dd"], ["", "e"]]),
    np.array(["ab", "c"]).astype(">U2"),
    np.array(["a", None, 1.5, [1, 2]], dtype=object),
    np.array([["a", "b"], ["c", "d"]], dtype=object),
    np.array([[1, 2, 3], [4, 5, 6]], dtype=object).T,  # objects are written row by row, whatever their order in memory
    np.asfortranarray(np.array([["a", [1], None], ["b", "c", (2,)]], dtype=object)),
    np.arange(24).astype(object).reshape(2, 3, 4).transpose(2, 0, 1),
    np.array({"a": 1}, dtype=object),
    np.zeros((0, 925, 25), np.float32),
    np.zeros((5, 0, 300)),
    np.zeros((0, 100_000), dtype=object),
]
PLAIN = [
    *(None, True, False, 0, 255, 65535, -1, 2**31 - 1, -(2**31), 2**63, -(2**900), 0.1, float("inf"), -0.0),
    *("", "text", "你好", "\ud800", "x" * 300, "y" * 70_000, b"", b"abc", b"\xff" * 300, b"\x80" * 70_000),
    *([], {}, (), [1, [2, [3, []]]], {"a": {"b": ("c", (1, 2, 3, 4))}}, {1: "x", b"k": "y", b"K" * 300: "z"}, (1,), (1, 2)),
    list(range(3000)),
    {str(key): key for key in range(3000)},
    (b"\x01" * 300, "bytes in a tuple"),
    [np.float32(1.5), np.float64(-2), np.int64(7), np.bool_(True), np.str_(""), np.str_("好"), np.bytes_(b"z")],
    [np.dtype("f4"), np.dtype(">i2"), np.dtype("O")],
]


def equal(ours: object, theirs: object) -> bool:
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, np.ndarray):
        same = ours.shape == theirs.shape and ours.dtype.newbyteorder("=") == theirs.dtype.newbyteorder("=")
        return same and all(equal(a, b) for a, b in zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[key], theirs[key]) for key in theirs)
    return ours == theirs and repr(ours) == repr(theirs)


def dumps(value: object, protocol: int, pure_python: bool = False) -> bytes:
    buffer = io.BytesIO()
    (pickle._Pickler if pure_python else pickle.Pickler)(buffer, protocol).dump(value)
    return buffer.getvalue()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("pure_python", [False, True], ids=["c", "python"])
def test_plain_data_is_read_as_pickle_reads_it(write, protocol: int, pure_python: bool):
    if pure_python and protocol == 5:
        pytest.skip("Python's own pickler fails on two empty arrays with protocol 5")
    for value in [*ARRAYS, *PLAIN, ARRAYS, PLAIN]:
        content = dumps(value, protocol, pure_python)
        assert equal(load(write(content)), pickle.loads(content)), f"{value!r:.80}"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_names_of_numpy_1_are_read(write, protocol: int):
    content = dumps([ARRAYS, np.float32(1.5)], protocol)
    for module in (b"multiarray", b"numeric"):
        old, new = b"numpy.core." + module, b"numpy._core." + module
        content = content.replace(b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old)
        content = content.replace(b"c" + new, b"c" + old)
    assert b"numpy._core" not in content and b"numpy.core" in content
    assert equal(load(write(content)), [ARRAYS, np.float32(1.5)])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_shared_values_stay_shared_and_arrays_in_order(write, protocol: int):
    inner, array, raw = [1], np.arange(100.0), b"\x01" * 1000
    first, second = load(write(dumps([[inner, array, raw], [inner, array, raw]], protocol)))
    assert first[0] is second[0] and first[1] is second[1] and first[2] == second[2] == raw
    for kind in (float, object):
        value = np.asfortranarray(np.arange(12).reshape(3, 4).astype(kind))
        assert load(write(dumps(value, protocol))).flags.f_contiguous


def test_arrays_are_views_of_the_file_and_read_only(write):
    value = {"audio": np.arange(4_000_000.0), "video": [np.ones((1000, 1000), np.float32)]}
    for protocol in (3, 4, 5):
        path = write(dumps(value, protocol))
        loaded, peak = loaded_with_peak(path)
        assert peak < 1_000_000  # of 36 MB of features
        np.testing.assert_array_equal(loaded["audio"], value["audio"])
        with pytest.raises(ValueError, match="read-only"):
            loaded["video"][0][0, 0] = 2


def test_real_files_are_read_as_pickle_reads_them(shared_folder: Path):
    path = shared_folder / "data" / "ravdess" / "ravdess_valid.pkl"
    with path.open("rb") as file, warnings.catch_warnings(action="ignore"):  # numpy 2 warns of numpy 1's names
        theirs = pickle.load(file)
    ours = load(path)
    assert len(ours) == 120
    assert equal(ours, theirs)


# Hostile files ---------------------------------------------------------------------------------------------------
CALLABLES = """
os.system subprocess.Popen importlib._bootstrap._load pickle.loads _pickle.loads functools.partial operator.attrgetter
builtins.eval builtins.getattr builtins.open builtins.bytearray builtins.object builtins.bytes.fromhex __builtin__.eval
__builtin__.apply __main__.anything types.CodeType codecs.encode _codecs.decode _codecs.encode.__self__ copyreg._reconstructor
collections.OrderedDict pathlib.Path numpy.load numpy.memmap numpy.recarray numpy.core.multiarray.fromfile
numpy._core.multiarray.fromfile numpy.core.multiarray._reconstruct.__globals__ numpy.core.records.fromrecords
numpy.ndarray.tofile numpy.dtype.__class__ numpy.random._pickle.__generator_ctor numpy.ma.core._mareconstruct torch.load
torch._utils._rebuild_tensor_v2 torch.storage._load_from_bytes pandas.read_pickle joblib.load dill.loads
"""


def text4(text: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


@pytest.mark.parametrize("callable_name", CALLABLES.split())
def test_no_call_is_made(refuse, callable_name: str):
    module, _, name = callable_name.rpartition(".")
    arguments = pickle.MARK + text4("touch owned") + pickle.TUPLE
    by_line = pickle.GLOBAL + f"{module}\n{name}\n".encode()
    by_stack = text4(module) + text4(name) + pickle.STACK_GLOBAL
    for named in (by_line, by_stack):
        for use in (arguments + pickle.REDUCE, arguments + pickle.NEWOBJ, b"", pickle.EMPTY_DICT + pickle.BUILD):
            message = refuse(b"\x80\x04" + named + use + b".")
            assert repr(module) in message and repr(name) in message
            assert "is not plain data" in message


REFUSED = """INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4 PERSID BINPERSID NEXT_BUFFER READONLY_BUFFER DUP POP POP_MARK STRING
SHORT_BINSTRING BINSTRING UNICODE INT LONG LONG4 FLOAT PUT GET LIST DICT EMPTY_SET FROZENSET ADDITEMS PROTO""".split()
RECONSTRUCT, SCALAR = b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n"
FROM_BUFFER, ENCODE = b"cnumpy.core.numeric\n_frombuffer\n", b"c_codecs\nencode\n"
EMPTY_ARRAY = RECONSTRUCT + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"


def dtype(code: str, order: str = "<") -> bytes:
    return raw_dtype(code) + b"(K\x03" + text4(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"


def raw_dtype(code: str) -> bytes:
    return b"cnumpy\ndtype\n" + text4(code) + b"\x89\x88\x87R"


DTYPE, OBJECTS, UNICODE = dtype("f4"), dtype("O8"), dtype("U1")
HUGE, ONE, FOUR_BYTES = b"\x8a\x06" + (10**12).to_bytes(6, "little"), b"K\x01\x85", b"C\x04aaaa"


def array(shape: bytes = ONE, kind: bytes = DTYPE, data: bytes = FOUR_BYTES) -> bytes:
    return EMPTY_ARRAY + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


NESTED = 30_000
# What is wrong -> what follows the protocol, and words of the refusal. First names that are admitted, misused.
HOSTILE = {
    "reconstruct another class": (RECONSTRUCT + b"cnumpy\ndtype\nK\x00\x85C\x01b\x87R.", "calls _reconstruct"),
    "reconstruct a huge array": (RECONSTRUCT + b"cnumpy\nndarray\n" + HUGE + b"\x85C\x01b\x87R.", "calls _reconstruct"),
    "codec that decodes": (ENCODE + text4("a") + text4("unicode_escape") + b"\x86R.", "calls encode"),
    "codec that unpacks": (ENCODE + text4("a") + text4("zip") + b"\x86R.", "calls encode"),
    "bytes of a huge size": (b"c__builtin__\nbytes\n" + HUGE + b"\x85R.", "calls bytes"),
    "ndarray called": (b"cnumpy\nndarray\n" + HUGE + b"\x85R.", "calls ndarray"),
    **{f"dtype {code}": (raw_dtype(code) + b".", f"an array of type '{code}' (structured and dated arrays are not read)")
       for code in ("f4,O", "V99999999", "(99,99)f4", "M8", "object")},
    "dtype with metadata": (DTYPE.replace(b"NNN", b"N}N") + b".", "unexpected form"),
    "dtype with a subarray in its state": (DTYPE.replace(b"NNN", b"N})") + b".", "unexpected form"),
    "byte order in an array": (
        raw_dtype("f4") + b"(K\x03" + array(kind=UNICODE, data=b"C\x04<\x00\x00\x00") + b"NNNK\x01K\x01K\x00tb.", "damaged"
    ),
    "scalar of objects": (SCALAR + OBJECTS + b"C\x08aaaaaaaa\x86R.", "calls scalar"),
    "scalar too short": (SCALAR + DTYPE + b"C\x02aa\x86R.", "with 2 bytes"),
    "scalar text beyond Unicode": (SCALAR + UNICODE + b"C\x04\xff\xff\xff\xff\x86R.", "not Unicode"),
    "array claims more than it has": (array(b"K\x04\x85") + b".", "claims 4 elements"),
    "array claims 10^12": (array(HUGE + b"\x85") + b".", "1000000000000"),
    "empty array of 10^12 rows": (array(HUGE + b"K\x00\x86", data=b"C\x00") + b".", "more than the whole file"),
    "empty array of 10^8 rows": (array(b"J\x00\xe1\xf5\x05K\x00\x86", data=b"C\x00") + b".", "the shape (100000000, 0)"),
    "array of negative size": (array(b"J\xff\xff\xff\xff\x85", data=b"C\x00") + b".", "the shape (-1,)"),
    "more dimensions than numpy has": (array(b"(" + b"K\x01" * 65 + b"t") + b".", "claims the shape"),
    "array of nothing-sized elements": (array(b"M\xff\x00\x85", dtype("S0"), b"C\x00") + b".", ""),
    "objects from raw bytes": (array(kind=OBJECTS, data=b"C\x08aaaaaaaa") + b".", "comes with a bytes"),
    "numbers from objects": (array(data=b"]K\x01a") + b".", "comes with a list"),
    "objects that are callables": (array(kind=OBJECTS, data=b"]cnumpy\ndtype\na") + b".", "a bare dtype"),
    "array text beyond Unicode": (array(kind=UNICODE, data=b"C\x04\x00\x00\x11\x00") + b".", "not Unicode"),
    "array text beyond Unicode, big-endian": (array(ONE, dtype("U1", ">"), b"C\x04\x00\x11\x00\x00") + b".", "not Unicode"),
    "array never completed": (b"]" + EMPTY_ARRAY + b"a.", "a bare _Unfinished"),
    "array inside itself": (EMPTY_ARRAY + b"\x94(K\x01" + ONE + OBJECTS + b"\x89]h\x00atb.", "before that array"),
    "frombuffer of 10^12": (FROM_BUFFER + b"(" + FOUR_BYTES + DTYPE + HUGE + b"\x85" + text4("C") + b"tR.", "1000000000000"),
    "axes that the array does not have": (
        FROM_BUFFER + b"(" + FOUR_BYTES + DTYPE + ONE + text4("K") + b"K\x05\x85tR.", "damaged"
    ),
    "an array in place of its order": (
        FROM_BUFFER + b"(" + FOUR_BYTES + DTYPE + ONE + array() + b"tR.", "calls _frombuffer"
    ),
    **{f"state of a {kind}": (content, f"changes the state of a {kind}") for kind, content in (
        ("list", b"]}b."), ("_Callable", b"cnumpy\nndarray\n(}}tb."), ("ndarray", array() + b"(tb."),
    )},
    "a callable as a value": (b"]cnumpy\ndtype\na.", "a bare dtype"),
    "a callable as the result": (b"cnumpy\ndtype\n.", "a bare dtype"),
    "a call of text": (text4("_reconstruct") + b")R.", "calls a value"),
    "name that is not text": (b"]]\x93.", "a name that is not text"),
    "name that is a tuple": (ONE + text4("a") + b"\x93.", "a name that is not text"),
    "name without end": (b"c" + b"a" * 5000, "is not plain data"),
    # Damaged and absurd files.
    "pickle in a pickle's frame, cut": (b"\x95\xff\xff\xff\xff\xff\xff\xff\xff]", "truncated"),
    "text claims 2^63": (b"\x8d" + b"\xff" * 8 + b"abc.", "damaged"),
    "text that is not UTF-8": (b"\x8c\x02\xff\xfe.", "damaged"),
    **{f"cut {content!r}": (content, f"truncated: the next part claims {count} bytes") for count, content in (
        (8, b"\x95\xff\xff"), (8, b"G\x00."), (1, b"]"), (255, b"\x8c\xffabc."), (255, b"\x8a\xff\x01."),
        (2**32 - 1, b"X\xff\xff\xff\xffabc."), (10**12, b"\x8e" + struct.pack("<Q", 10**12) + b"abc."),
        (10**12, b"\x96" + struct.pack("<Q", 10**12) + b"abc."),
    )},
    **{f"end {content!r}": (content, "does not end where") for content in (b".", b"]].", b"].].", b"(].")},
    "no mark": (b"]e.", "damaged"),
    "unknown opcode": (b"\xff.", "0xff"),
    "unknown memo": (b"h\x07.", "damaged"),
    **{f"{key!r} as key": (b"}" + key + b"K\x01s.", "a key that is not") for key in (b"}", b"N", b"G" + b"\x00" * 8, b"]", b")")},
    "odd dict": (b"}(K\x01u.", "a key that is not"),
    "colliding keys": (b"}\x8a\x09" + b"\x7f" * 9 + b"K\x01s.", "64 bits"),
    "append to text": (b"\x8c\x01aK\x01a.", "adds to a str"),
    "set an item of a list": (b"]K\x01K\x02s.", "adds to a list"),
    **{f"cycle {content!r}": (content, "a container inside itself")
       for content in (b"}\x94K\x01h\x00s.", b"]\x94h\x00a.", b"]\x94h\x00\x85a.")},
    "arrays of objects in each other": (
        array(b")", OBJECTS, b"]Na") + b"".join(b"q\x00" + array(b")", OBJECTS, b"]h\x00a") for _ in range(5_000)) + b".",
        "as one element of another",
    ),
    "nested lists": (b"]" * NESTED + b"a" * (NESTED - 1) + b".", "nests more than 64"),
    "nested dicts": (b"}K\x01" * NESTED + b"N" + b"s" * NESTED + b".", "nests more than 64"),
    "nested tuples": (b")" + b"\x85" * NESTED + b".", "nests more than 64"),
    "nested marks": (b"(" * NESTED + b"t" * NESTED + b".", "nests more than 64"),
    **{type(value).__name__: (dumps([value], 2)[2:], "which is not plain data")
       for value in (1j, set(), bytearray(b"abc"), Path("a"), Fraction(1, 2))},
    **{f"opcode {name}": (b"(]" + getattr(pickle, name) + b"1\n1\n.", f"the opcode {name},") for name in REFUSED},
    "a number of many digits": (b"]I" + b"9" * 5000 + b"\n.", "the opcode INT,"),
}  # fmt: skip
NO_PICKLES = {  # whole files
    "empty file": (b"", "empty"),
    "text file": (b"version https://git-lfs.github.com/spec/v1\n", "not a pickle"),
    "protocol 0": (pickle.dumps([1], 0), "not a pickle of protocol 2 or later"),
    "protocol of the future": (b"\x80\x09].", "claims protocol 9"),
}


def test_every_opcode_is_admitted_or_refused_on_purpose():
    assert len(safe_pickle._OPCODES) + len(REFUSED) + 1 == len(pickletools.opcodes)  # and the end


@pytest.mark.parametrize("form", [*HOSTILE, *NO_PICKLES])
def test_hostile_damaged_and_absurd_files_are_refused(refuse, form: str):
    content, reason = NO_PICKLES[form] if form in NO_PICKLES else (b"\x80\x04" + HOSTILE[form][0], HOSTILE[form][1])
    assert reason in refuse(content)


# Files of some hundred bytes or kB that would unfold to GB, or keep a processor busy for hours.
FIFTY = [(i, i, i + 1) for i in range(50)]
LAUGHS = b"]()q\x00" + b"".join(b"h%ch%c\x86q%c" % one for one in FIFTY)  # each tuple holds the last twice
LONG = text4("a" * 10_000) + b"q\x00" + text4("latin1") + b"q\x01"
BYTES = pickle.BINBYTES + struct.pack("<I", 10_000) + b"a" * 10_000 + b"q\x00"
MEGABYTE = b"B" + struct.pack("<I", 1 << 20) + bytes(1 << 20)
# An array of one list of 400 lists of 400 references to one text: 4 MB to print, and with more levels far more.
OBJECT_OF_LISTS = (
    b"(" + text4("\U0010ffff" * 2) + b"q\x00](" + b"h\x00" * 400 + b"eq\x01](" + b"h\x01" * 400 + b"eq\x02"
) + (EMPTY_ARRAY + b"(K\x01)" + OBJECTS + b"\x89]h\x02atbq\x03")
REPEATS, REUSES, NO_SHAPE = "repeats few values", "the same parts more often", "a shape that does not consist of whole numbers"
AMPLIFIED = {
    "tuples of tuples": (LAUGHS + b"e.", REPEATS),
    "lists of lists": (b"](]q\x00" + b"".join(b"](h%ch%ceq%c" % one for one in FIFTY) + b"e.", REPEATS),
    "dicts of dicts": (b"](}q\x00" + b"".join(b"}(K\x00h%cK\x01h%cuq%c" % one for one in FIFTY) + b"e.", REPEATS),
    "object arrays of lists of object arrays": (
        b"](]q\x00" + b"".join(
            b"](h%ch%ceq%c" % (first, second, last + 60) + array(ONE, OBJECTS, b"]h%ca" % (last + 60)) + b"q%c" % last
            for first, second, last in FIFTY
        ) + b"e.", REPEATS,
    ),
    "one long text very often": (b"](" + text4("a" * 1_000_000) + b"q\x00" + b"h\x00" * 5_000 + b"e.", REPEATS),
    "one text encoded often": (
        b"](" + LONG + ENCODE + b"q\x02h\x00h\x01\x86R" + b"h\x02h\x00h\x01\x86R" * 5_000 + b"e.", REUSES
    ),
    "one scalar taken often": (
        b"](" + BYTES + SCALAR + b"q\x01" + dtype("S10000") + b"q\x02h\x00\x86R" + b"h\x01h\x02h\x00\x86R" * 5_000 + b"e.",
        REUSES,
    ),
    "one list in many arrays": (
        b"](](" + b"N" * 10_000 + b"eq\x00" + OBJECTS + b"q\x01" + array(b"M\x10\x27\x85", b"h\x01", b"h\x00") * 1_000 + b"e.",
        REUSES,
    ),
    "one text looked at often": (
        b"](" + MEGABYTE + b"q\x00" + UNICODE + b"q\x01" + FROM_BUFFER + b"q\x02(h\x00h\x01J" + struct.pack("<i", 1 << 18)
        + b"\x85q\x03" + text4("C") + b"q\x04tR" + b"h\x02(h\x00h\x01h\x03h\x04tR" * 20_000 + b"e.",
        REUSES,
    ),
    "one part under many memo keys": (
        b"](" + MEGABYTE + b"".join(code + struct.pack("<I", key) for code in (b"r", b"j") for key in range(5_000)) + b"e.",
        REUSES,
    ),
    "a shape that is long to print": (OBJECT_OF_LISTS + array(b"h\x03\x85") + b"t.", NO_SHAPE),
    "a buffer's shape that is long to print": (
        OBJECT_OF_LISTS + FROM_BUFFER + b"(" + FOUR_BYTES + DTYPE + b"h\x03\x85" + text4("C") + b"tRt.", NO_SHAPE
    ),
    "a shape whose product fills memory": (array(b"(" + b"M\xff\xff" * 100_000 + b"t") + b".", "claims the shape (65535, "),
}  # fmt: skip


@pytest.mark.parametrize("attack", AMPLIFIED)
def test_small_files_cannot_grow(refuse, monkeypatch, attack: str):
    monkeypatch.setattr(safe_pickle, "MAX_UNFOLDED", 200_000)
    content, reason = AMPLIFIED[attack]
    started = time.monotonic()
    assert reason in refuse(b"\x80\x04" + content)
    assert time.monotonic() - started < 3


def test_shared_values_of_honest_files_are_not_taken_for_an_attack(write):
    frames, word = np.ones((100, 100)), "a shared text" * 10
    value = [{"text": word, "audio": frames, "names": ("a", "b")} for _ in range(20_000)]
    for protocol in (2, 4):
        loaded = load(write(dumps(value, protocol)))
        assert len(loaded) == 20_000 and loaded[0]["audio"] is loaded[-1]["audio"]


def test_a_huge_memo_index_takes_no_memory_and_one_long_value_is_copied_once(write):
    loaded, peak = loaded_with_peak(write(b"\x80\x04]r\xff\xff\xff\xff."))
    assert loaded == [] and peak < 100_000
    content = b"\x80\x03](B" + struct.pack("<I", 100_000) + b"a" * 100_000 + b"q\x00" + b"h\x00" * 10_000 + b"e."
    loaded, peak = loaded_with_peak(write(content))
    assert len(loaded) == 10_001 and loaded[5] is loaded[6]
    assert peak < 1_500_000


@pytest.mark.parametrize("part", [b"}", b"N\x85", b"]Na"], ids=["dicts", "tuples", "lists"])
def test_as_many_small_containers_as_are_admitted_take_little(write, monkeypatch, part: bytes):
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 50_000)  # a sixtieth of the real bound, and so of its memory
    path = write(b"\x80\x04(" + part * (49_990 // len(part)) + b"t.")
    loaded, peak = loaded_with_peak(path)
    assert len(loaded) == 49_990 // len(part) and peak < 10_000_000
    assert gc.isenabled()


def test_too_many_values_are_refused(refuse, monkeypatch):
    assert 2_000_000 <= safe_pickle.MAX_OPCODES <= 5_000_000  # MELD's largest file needs about 700,000
    monkeypatch.setattr(safe_pickle, "MAX_OPCODES", 1000)
    assert "more than 1000 values; keep numbers in numpy arrays" in refuse(b"\x80\x04" + b"N" * 2000)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_truncation_is_refused(write, protocol: int):
    value = [{"text": "hi", "audio": np.ones((2, 3), np.float32)}, np.float64(2), np.array(["a", None])]
    content = dumps(value, protocol)
    for length in range(len(content)):
        with pytest.raises(UnsafePickleError):
            load(write(content[:length]))


# Pieces that, in the right order, make arrays: damage of whole opcodes gets further than that of single bytes.
PIECES = [
    *(DTYPE, OBJECTS, UNICODE, EMPTY_ARRAY, RECONSTRUCT, SCALAR, b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"K\x01"),
    *(FROM_BUFFER, ENCODE, FOUR_BYTES, b"\x8c\x01C", b"h\x00", b"q\x00", b"\x94"),
    *safe_pickle._OPCODES,
]


def damage(draw: random.Random, files: list[bytes]) -> bytes:
    content = bytearray(draw.choice(files))
    place = draw.randrange(2, len(content))
    match draw.randrange(5):
        case 0:
            for _ in range(draw.randint(1, 4)):
                value = draw.choice([draw.randrange(256), *b"(.0Rbcahtu]}\x85\x93\x94"])
                content[draw.randrange(2, len(content))] = value
        case 1:
            other = draw.choice(files)
            content[place:] = other[draw.randrange(len(other)) :]
        case 2:
            content[place : place + draw.choice([0, 1, 20])] = draw.choice(PIECES)
        case 3:
            content[place:place] = content[place : place + draw.randint(1, 30)] * draw.randint(1, 4)
        case _:
            content[2:] = b"".join(draw.choices(PIECES, k=draw.randint(1, 30))) + b"."
    return bytes(content)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_random_damage_gives_plain_data_or_the_one_error(write, protocol: int):
    value = [
        {"text": "hi", "audio": np.ones((2, 3), np.float32), "n": 3},
        (np.float64(2), b"x" * 300, np.str_("好")),
        np.array([None, [1, {"a": (2,)}]], dtype=object),
        np.array(["a", "bc"]),
    ]
    files = [dumps(part, protocol) for part in [value, *value]]
    draw = random.Random(protocol)
    refused = 0
    for _ in range(500):
        try:
            loaded = load(write(damage(draw, files)))
        except UnsafePickleError:
            refused += 1
        else:
            plain = list | tuple | dict | str | bytes | int | float | bool | None | np.ndarray | np.generic | np.dtype
            assert isinstance(loaded, plain)
            repr(loaded)  # whatever was admitted can be looked at
    assert 150 < refused < 500
