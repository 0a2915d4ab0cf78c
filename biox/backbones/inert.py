"""A pickle read as data: a small stack machine that builds containers and never calls the file.

A pickle is a program for a stack machine whose instructions may import and call any function. This
machine knows the same instructions (the standard library's `pickletools` splits them up), but what
a name means is decided by a function of ours, and calling a name that is not one of ours makes a
`Record`: what was called, and with what. `pickle.Unpickler` with a restricted ``find_class`` would
do for honest files; a hostile one can still make it fill the memory (a huge memo index), hash for
ever or exhaust the C stack (nested tuples as keys).
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO


class Refused(ValueError):
    """A pickle wants something that no checkpoint needs; the text says what."""


@dataclass(frozen=True, eq=False)
class Name:
    """A class or function that a file names, and that we do not have or do not want."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, eq=False)
class Builder:
    """A name that we do have: a small function of our own."""

    build: Callable


@dataclass(eq=False, repr=False)
class Record:
    """What a file wanted built from a `Name`: inert, for looking at only."""

    name: Name
    arguments: object
    state: object = None
    items: list = field(default_factory=list)

    def __repr__(self) -> str:  # not its content: a file can make it refer to itself
        return f"<record of {self.name}>"


def _as_key(value: object) -> object:
    """Return a key of a dict if hashing it is cheap; tuples may hold no tuples."""
    parts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(part, tuple | list | dict | bytearray) for part in parts):
        raise Refused("found a container as key of a dict")
    return value


def _called(function: object, arguments: object) -> object:
    if isinstance(function, Builder) and isinstance(arguments, tuple):
        return function.build(*arguments)
    if isinstance(function, Name):
        return Record(function, arguments)
    raise Refused(f"found a call of a {type(function).__name__}")


def _with_keywords(function: object, arguments: object, keywords: object) -> tuple:
    """Fold keyword arguments into the positional ones: a record only has to show them."""
    if isinstance(function, Builder):
        raise Refused("found keyword arguments for a container or tensor")
    return function, (arguments, keywords)


def _extend(target: object, items: list) -> None:
    if isinstance(target, Record):
        target.items.extend(items)
    elif isinstance(target, list):
        target.extend(items)
    else:
        raise Refused(f"found items for a {type(target).__name__}")


def _update(target: object, items: list) -> None:
    pairs = zip(items[::2], items[1::2], strict=True)
    if isinstance(target, Record):
        target.items.extend(pairs)
    elif isinstance(target, dict):
        for key, value in pairs:
            target[_as_key(key)] = value
    else:
        raise Refused(f"found entries for a {type(target).__name__}")


class _Machine:
    """The stack, the stacks below each open mark, and the memo."""

    def __init__(self, resolve: Callable, persistent: Callable):
        self.resolve, self.persistent = resolve, persistent
        self.stack: list = []
        self.below: list[list] = []
        self.memo: dict[int, object] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, n: int) -> list:
        taken = self.stack[-n:]
        del self.stack[-n:]
        if len(taken) < n:
            raise IndexError("an instruction lacks its operands")
        return taken

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list:
        items, self.stack = self.stack, self.below.pop()
        return items

    def discard(self) -> None:
        if self.stack:
            self.stack.pop()
        else:  # an open mark counts as an item
            self.marked()

    def memoise(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def name(self, module: object, name: object) -> None:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Refused("found a name that is no text")
        self.push(self.resolve(module, name))

    def state(self) -> None:
        (state,) = self.pop(1)
        target = self.stack[-1]
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # a state_dict keeps its versions in such a state
            raise Refused(f"found a state for a {type(target).__name__}")

    def instance(self) -> None:
        kind, *arguments = self.marked()
        self.push(_called(kind, tuple(arguments)))


_ARGUMENTS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING "
    "BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 UNICODE SHORT_BINUNICODE BINUNICODE "
    "BINUNICODE8".split()
)
"""Instructions that put their own argument on the stack."""

_STEPS: dict[str, Callable[[_Machine, object], object]] = {
    "PROTO": lambda m, a: None,
    "FRAME": lambda m, a: None,
    "NONE": lambda m, a: m.push(None),
    "NEWTRUE": lambda m, a: m.push(True),
    "NEWFALSE": lambda m, a: m.push(False),
    "EMPTY_LIST": lambda m, a: m.push([]),
    "EMPTY_SET": lambda m, a: m.push([]),
    "EMPTY_DICT": lambda m, a: m.push({}),
    "EMPTY_TUPLE": lambda m, a: m.push(()),
    "MARK": lambda m, a: m.mark(),
    "POP": lambda m, a: m.discard(),
    "POP_MARK": lambda m, a: m.marked(),
    "DUP": lambda m, a: m.push(m.stack[-1]),
    "LIST": lambda m, a: m.push(m.marked()),
    "TUPLE": lambda m, a: m.push(tuple(m.marked())),
    "FROZENSET": lambda m, a: m.push(m.marked()),
    "TUPLE1": lambda m, a: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, a: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, a: m.push(tuple(m.pop(3))),
    "DICT": lambda m, a: (items := m.marked(), m.push({}), _update(m.stack[-1], items)),
    "APPEND": lambda m, a: (item := m.pop(1), _extend(m.stack[-1], item)),
    "APPENDS": lambda m, a: (items := m.marked(), _extend(m.stack[-1], items)),
    "ADDITEMS": lambda m, a: (items := m.marked(), _extend(m.stack[-1], items)),
    "SETITEM": lambda m, a: (pair := m.pop(2), _update(m.stack[-1], pair)),
    "SETITEMS": lambda m, a: (items := m.marked(), _update(m.stack[-1], items)),
    "PUT": lambda m, a: m.memoise(a),
    "BINPUT": lambda m, a: m.memoise(a),
    "LONG_BINPUT": lambda m, a: m.memoise(a),
    "MEMOIZE": lambda m, a: m.memoise(None),
    "GET": lambda m, a: m.push(m.memo[a]),
    "BINGET": lambda m, a: m.push(m.memo[a]),
    "LONG_BINGET": lambda m, a: m.push(m.memo[a]),
    "GLOBAL": lambda m, a: m.name(*a.split(" ", 1)),
    "STACK_GLOBAL": lambda m, a: m.name(*m.pop(2)),
    "REDUCE": lambda m, a: m.push(_called(*m.pop(2))),
    "NEWOBJ": lambda m, a: m.push(_called(*m.pop(2))),
    "NEWOBJ_EX": lambda m, a: m.push(_called(*_with_keywords(*m.pop(3)))),
    "INST": lambda m, a: m.push(_called(m.resolve(*a.split(" ", 1)), tuple(m.marked()))),
    "OBJ": lambda m, a: m.instance(),
    "BUILD": lambda m, a: m.state(),
    "BINPERSID": lambda m, a: m.push(m.persistent(*m.pop(1))),
}
"""What each other instruction does; those of extension registries and outside buffers are not
here, nor are persistent names as text."""


def read_inert(file: IO[bytes], resolve: Callable, persistent: Callable) -> object:
    """Read the pickle at the front of a file, up to its STOP, without running anything of it.

    Sets come back as lists (the members of a hostile one could take for ever to hash).

    Parameters
    ----------
    file : binary file
        Opened where the pickle begins; left where it ends.
    resolve : function of (module, name)
        Says what a name means: a value, a `Builder`, or a `Name` whose calls become `Record`s. It
        may raise `Refused`.
    persistent : function of one value
        Says what a persistent id, such as torch's storages, stands for.

    Raises
    ------
    Refused
        An instruction, a name or a call that no checkpoint needs.
    ValueError, IndexError, KeyError
        The pickle is damaged.
    """
    machine = _Machine(resolve, persistent)
    for code, argument, _ in pickletools.genops(file):
        if code.name in _ARGUMENTS:
            machine.push(argument)
        elif code.name in _STEPS:
            _STEPS[code.name](machine, argument)
        elif code.name != "STOP":
            raise Refused(f"found the pickle instruction {code.name}")
    return machine.pop(1)[0]
