"""Plain YAML -> frozen dataclasses whose annotations are the schema; errors name the key."""

import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml


def read_yaml(path: Path) -> Any:
    """Read plain values from a YAML file.

    Raises
    ------
    ValueError
        The file does not parse, or a key stands twice in it.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise ValueError(
            f"{path}: expected YAML, found text that does not parse ({line})"
        ) from None


class _NoDuplicates(yaml.SafeLoader):
    """YAML without code, where a key that stands twice is an error instead of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key {key!r} stands twice, {node.start_mark}")
        return super().construct_mapping(node, deep)


def check(good: bool, key: str, expected: object, found: object) -> None:
    """Raise ValueError in the words of all settings unless `good`."""
    if not good:
        raise ValueError(f"{key}: expected {expected}, found {found!r}")


def build(kind: Any, value: Any, key: str) -> Any:
    """Turn plain YAML `value` into `kind`, or say which key is wrong."""
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:  # checked where it is put to use
        return value
    if is_dataclass(kind):
        return value if isinstance(value, kind) else _build_section(kind, value, key)
    if origin in (types.UnionType, typing.Union):  # only `X | None` is used
        return None if value is None else build(args[0], value, key)
    if origin is Literal:
        check(value in args, key, f"one of {list(args)}", value)
        return value
    if origin is dict:
        check(isinstance(value, dict), key, "names with values", value)
        return {
            build(args[0], k, f"{key}.{k}"): build(args[1], v, f"{key}.{k}")
            for k, v in value.items()
        }
    if origin is tuple:
        check(isinstance(value, list | tuple), key, "a list", value)
        return tuple(build(args[0], v, f"{key}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = {
        int: "a whole number",
        float: "a number such as 1.0e-4",
        str: "a text",
        bool: "true or false",
    }[kind]
    good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    check(good, key, expected, value)
    check(kind is not float or math.isfinite(value), key, "a finite number", value)
    return value


def _build_section(kind: Any, value: Any, key: str) -> Any:
    dot = f"{key}." if key else ""
    check(isinstance(value, dict), key or "settings", "names with values", value)
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}
    for name in value:
        check(name in known, f"{dot}{name}", f"one of {sorted(known)}", "an unknown key")
    for name, f in known.items():
        needed = f.default is MISSING and f.default_factory is MISSING
        check(name in value or not needed, f"{dot}{name}", "a value", "no such key")
    built = {name: build(hints[name], v, f"{dot}{name}") for name, v in value.items()}
    try:
        return kind(**built)
    except ValueError as error:
        raise ValueError(f"{dot}{error}") from None
