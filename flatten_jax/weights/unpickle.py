"""The pickles of `torch.save`, interpreted by a small machine of our own: no import, no call, nothing is executed.

Python's Unpickler, and PyTorch's `weights_only` on top of it, call what the file names and have been talked into more
than was meant. Here a name is looked up in one table of inert builders, and what is not in the table is refused.
"""

import pickletools
from typing import Any, BinaryIO, NamedTuple

from flatten_jax.weights.pickle_types import allowed, as_key, build, set_state, stands_in
from flatten_jax.weights.pickle_values import STORAGES, Global, Opaque, Storage, UnpickleError

MAX_PICKLE_BYTES = 2 << 30  # tensors lie beside the pickle, but NumPy arrays in it
MAX_OBJECTS = 2_000_000


class Unpickled(NamedTuple):
    """What a pickle holds.

    Attributes:
        content: tensors as `Tensor`, CfgNode and Namespace as dicts, what is of no use here as `Opaque`.
        storages: those that it refers to, by key.
        stand_ins: the classes of which nothing was made but a stand-in.
    """

    content: Any
    storages: dict[str, Storage]
    stand_ins: tuple[str, ...]


class _Bounded:
    """What pickletools reads from: never more bytes than allowed, and no allocation before that is known."""

    def __init__(self, file: BinaryIO, limit: int):
        self._file, self._left = file, limit

    def read(self, count: int) -> bytes:
        if count > self._left:
            raise UnpickleError("it ends in the middle, or is larger than a pickle of weights can be")
        self._left -= count
        return self._file.read(count)

    def readline(self) -> bytes:
        line = self._file.readline(self._left)
        self._left -= len(line)
        return line

    def tell(self) -> int:
        return 0


def unpickle(file: BinaryIO, limit: int = MAX_PICKLE_BYTES) -> Unpickled:
    """The next pickle of `file`, which is left behind its end.

    Args:
        limit: bytes that the pickle may take at most.

    Raises:
        RefusedError: it names something that is not on the list; the message says what.
        UnpickleError: it is damaged, or too large.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(file, min(limit, MAX_PICKLE_BYTES))):
            machine.spend(1)
            if opcode.name == "STOP":
                return Unpickled(machine.pop(), machine.storages, tuple(sorted(machine.stand_ins)))
            machine.step(opcode.name, argument)
    except UnpickleError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise UnpickleError(f"a damaged pickle ({error})") from error
    raise UnpickleError("a pickle without an end")


class _Machine:
    """The stack, the memo, and one step per opcode."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.stand_ins: set[str] = set()
        self.left = MAX_OBJECTS

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise UnpickleError(f"it makes more than {MAX_OBJECTS} objects")

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise UnpickleError("a damaged pickle (the stack is empty)")
        return self.stack.pop()

    def pop_mark(self) -> list[Any]:
        if not self.marks:
            raise UnpickleError("a damaged pickle (no mark)")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def step(self, name: str, argument: Any) -> None:
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.marks.append(len(self.stack))
            case "NONE":
                push(None)
            case "NEWTRUE" | "NEWFALSE":
                push(name == "NEWTRUE")
            case "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4" | "FLOAT" | "BINFLOAT":
                push(argument)
            case "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE" | "BINUNICODE" | "SHORT_BINUNICODE":
                push(argument)
            case "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                push(argument)
            case "BYTEARRAY8":
                push(bytes(argument))
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST" | "EMPTY_SET":
                push([])
            case "EMPTY_DICT":
                push({})
            case "TUPLE":
                push(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                push(tuple(reversed([self.pop() for _ in range(int(name[-1]))])))
            case "LIST" | "FROZENSET":
                push(self.pop_mark())
            case "DICT":
                push(_pairs(self.pop_mark()))
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.pop_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.pop_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(self.named(argument))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                push(self.named(f"{module} {attribute}"))
            case "INST":
                allowed(argument)  # the refusal names it; torch.save writes no INST for what is allowed
                raise UnpickleError("an opcode INST, which torch.save does not write")
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if name == "NEWOBJ_EX":  # named arguments, which no builder takes
                    self.pop()
                arguments, function = self.pop(), self.pop()
                push(self.build(function, arguments))
            case "BUILD":
                state = self.pop()
                self.spend(len(state) if isinstance(state, dict) else 1)
                set_state(self.stack[-1], state)
            case "BINPERSID":
                push(self.storage(self.pop()))
            case _:
                raise UnpickleError(f"an opcode {name}, which torch.save does not write")

    def extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)
        elif not isinstance(self.stack[-1], Opaque):
            raise UnpickleError("a damaged pickle (append to what is no list)")

    def update(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_pairs(items))
        elif not isinstance(self.stack[-1], Opaque):
            raise UnpickleError("a damaged pickle (an entry set in what is no dict)")

    def named(self, argument: str) -> Global:
        found = allowed(argument)
        if stands_in(found.name):
            self.stand_ins.add(found.name)
        return found

    def build(self, function: Any, arguments: Any) -> Any:
        # A builder may copy its arguments, so a pickle that makes many copies of one list pays for each.
        if isinstance(arguments, tuple):
            self.spend(sum(len(a) for a in arguments if isinstance(a, (list, tuple, dict))))
            self.spend(sum(len(a) >> 10 for a in arguments if isinstance(a, (str, bytes))))
        return build(function, arguments)

    def storage(self, reference: Any) -> Storage:
        kind, storage_type, key, _, size, *view = reference
        if kind != "storage" or not isinstance(storage_type, Global) or storage_type.name not in STORAGES:
            raise UnpickleError("a reference to something that is no storage of plain numbers")
        if type(size) is not int or size < 0 or not isinstance(key, str) or any(v is not None for v in view):
            raise UnpickleError(f"a storage {key!r} of size {size!r}")
        storage = Storage(key, STORAGES[storage_type.name], size)
        if self.storages.setdefault(key, storage) != storage:
            raise UnpickleError(f"a storage {key!r} of two types or sizes")
        return storage


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return {as_key(key): value for key, value in zip(items[::2], items[1::2], strict=True)}
