"""The configuration file as a site finds it: every key with its reason and its default, commented out.

Made from the types of config.py and what stands beside each key there, so it cannot say anything else than they do.
"""

import ast
import functools
import inspect
import json
from collections.abc import Iterator

import msgspec

from tapfinger_hpc import config
from tapfinger_hpc.config import Config

_HEAD = """\
# TapFinger-HPC. A line "#key = value" shows a default: take the "#" away to change it.
# Agent and server read this file when they start.
"""
_PARTITIONS = """\

# [partitions.NAME] makes every batch job of that partition managed, with these ranges unless the job declares its own:
# [partitions.gpu]
"""


def render(chosen: Config | None = None) -> str:
    """The file's text; keys that are not at their default are set, all others commented out."""
    chosen = chosen or Config()
    parts = [_HEAD]
    for section in msgspec.structs.fields(Config):
        if section.name != "partitions":
            parts.append(f"\n[{section.name}]\n")
            parts.extend(_entries(getattr(chosen, section.name)))
    parts.append(_PARTITIONS)
    for key, reason in _reasons("PartitionConfig").items():
        parts.extend(f"#   {line}\n" for line in reason.splitlines())
        parts.append(f'# {key} = ""\n')
    for name, partition in chosen.partitions.items():
        parts.append(f"\n[partitions.{_value(name)}]\n")
        parts.extend(_set(partition))
    return "".join(parts)


def _entries(values: msgspec.Struct) -> Iterator[str]:
    reasons = _reasons(type(values).__name__)
    for field in msgspec.structs.fields(values):
        value = getattr(values, field.name)
        yield from (f"# {line}\n" for line in reasons[field.name].splitlines())
        yield f"{'#' if value == field.default else ''}{field.name} = {_value(value)}\n"


def _set(values: msgspec.Struct) -> Iterator[str]:
    for field in msgspec.structs.fields(values):
        if (value := getattr(values, field.name)) != field.default:
            yield f"{field.name} = {_value(value)}\n"


def _reasons(kind: str) -> dict[str, str]:
    """What stands under each key in the source: it is all that there is, as Python forgets such strings."""
    body = next(node.body for node in _source().body if isinstance(node, ast.ClassDef) and node.name == kind)
    reasons: dict[str, str] = {}
    key = ""
    for node in body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            key = node.target.id
            reasons[key] = ""
        elif key and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            reasons[key] = inspect.cleandoc(str(node.value.value)).replace("``", "")
    return reasons


@functools.cache
def _source() -> ast.Module:
    return ast.parse(inspect.getsource(config))


def _value(value: object) -> str:
    """As TOML spells it; strings are quoted as JSON does, which TOML takes."""
    if isinstance(value, bool | str | int | float):
        return json.dumps(value)
    raise TypeError(f"a configuration value of type {type(value).__name__} has no spelling in TOML here")
