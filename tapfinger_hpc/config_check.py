"""Finds every mistake of a configuration file, each with its line, its key and the nearest right one. Pure.

Reading stops at nothing: somebody who edits a file by hand wants to hear of all that is wrong at once.
"""

import difflib
import re
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import msgspec

_SHOWN_LETTERS = 80
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")

KeyPath = tuple[str, ...]


class Mistake(msgspec.Struct, frozen=True):
    """One thing that is wrong."""

    line: int
    """Where the key or the section stands, counted from 1."""
    key: str
    """With its section: ``agent.mode``."""
    what: str
    """What was seen, and what would be right."""

    def __str__(self) -> str:
        return ": ".join(filter(None, (str(self.line), self.key, self.what)))


def not_toml(text: str, complaint: str) -> Mistake:
    """What TOML's reader says, with the line in front."""
    place = _PLACE.search(complaint)
    line = int(place[1]) if place and place[1] else max(1, len(text.splitlines()))
    return Mistake(line, "", f"not TOML: {complaint}")


def mistakes(text: str, content: Mapping[str, Any], kind: type[msgspec.Struct]) -> list[Mistake]:
    """All mistakes, in the order of their lines.

    Args:
        text: the file.
        content: what TOML makes of it.
        kind: what it should be.
    """
    return located(text, dict(_wrong(content, kind, (), _known(kind))))


def located(text: str, found: Mapping[KeyPath, str]) -> list[Mistake]:
    """These mistakes with the lines on which their keys stand, in the order of the lines."""
    lines = _lines(text, found)
    placed = [Mistake(lines.get(path, 1), ".".join(path), what) for path, what in found.items()]
    return sorted(placed, key=lambda one: one.line)


def _wrong(value: Any, kind: Any, path: KeyPath, known: Mapping[str, KeyPath]) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if not isinstance(value, dict):
            yield path, f"expected a section [{'.'.join(path)}], seen {_shown(value)}"
            return
        types = {field.name: field.type for field in msgspec.structs.fields(kind)}
        for key, part in value.items():
            if key in types:
                yield from _wrong(part, types[key], (*path, key), known)
            else:
                yield (*path, key), f"unknown; {_nearest(key, path, types, known)}"
    elif typing.get_origin(kind) is dict:
        if not isinstance(value, dict):
            yield path, f"expected sections [{'.'.join(path)}.NAME], seen {_shown(value)}"
            return
        for key, part in value.items():
            yield from _wrong(part, typing.get_args(kind)[1], (*path, key), known)
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            yield path, f"expected {_expected(value, kind)}, seen {_shown(value)}"


def _nearest(key: str, path: KeyPath, here: Collection[str], known: Mapping[str, KeyPath]) -> str:
    """The nearest known key: of this section, or where the key has only gone astray, of the section it belongs to."""
    elsewhere = [".".join(place) for name, place in known.items() if name.rpartition(".")[2] == key]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    near = difflib.get_close_matches(key, here, n=1)
    if near:
        return f"did you mean {'.'.join((*path, near[0]))}?"
    far = difflib.get_close_matches(key, [name.rpartition(".")[2] for name in known], n=1)
    if far:
        places = [".".join(place) for name, place in known.items() if name.rpartition(".")[2] == far[0]]
        return f"did you mean {' or '.join(places)}?"
    return f"known here: {', '.join(sorted(here))}"


def _known(kind: type[msgspec.Struct], path: KeyPath = ()) -> dict[str, KeyPath]:
    """Every key that has a place of its own; those of sections with names of the site's have NAME in their place."""
    found: dict[str, KeyPath] = {}
    for field in msgspec.structs.fields(kind):
        place, inner = (*path, field.name), field.type
        if typing.get_origin(inner) is dict:
            place, inner = (*place, "NAME"), typing.get_args(inner)[1]
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            found |= _known(inner, place)
        else:
            found[".".join(place)] = place
    return found


def _expected(value: Any, kind: Any) -> str:
    info = msgspec.inspect.type_info(kind)
    match info:
        case msgspec.inspect.LiteralType(values=values):
            near = difflib.get_close_matches(str(value), [str(one) for one in values], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            return f"one of {', '.join(repr(one) for one in values)}{hint}"
        case msgspec.inspect.IntType():
            return f"a whole number{_range(info)}"
        case msgspec.inspect.FloatType():
            return f"a number{_range(info)}"
        case msgspec.inspect.StrType():
            return "a text in quotes"
        case msgspec.inspect.BoolType():
            return "true or false"
    return str(kind)


def _range(info: msgspec.inspect.IntType | msgspec.inspect.FloatType) -> str:
    bounds = ((" above", info.gt), (" from", info.ge), (" below", info.lt), (" to" if info.ge else " up to", info.le))
    return "".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    text = repr(value)
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}..."


def _lines(text: str, paths: Collection[KeyPath]) -> dict[KeyPath, int]:
    """The line on which each key begins.

    TOML's reader tells no places, but it tells what the first lines of the file hold: a key stands on the line after
    the longest beginning that is TOML and does not hold it yet. The middle of a text of several lines is no such
    beginning. Reads the file as often as it has lines, which is why nobody asks while all is well.
    """
    lines = text.splitlines(keepends=True)
    found: dict[KeyPath, int] = {}
    before = 0
    for number in range(1, len(lines) + 1):
        try:
            content = tomllib.loads("".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue
        found |= {path: before + 1 for path in paths if path not in found and _holds(content, path)}
        if len(found) == len(paths):
            break
        before = number
    return found


def _holds(content: Any, path: KeyPath) -> bool:
    for key in path:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True
