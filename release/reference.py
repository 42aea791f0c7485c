"""The reference pages of docs/: commands, configuration and routes, from the program itself, so they cannot be wrong.

Pure: commands, a configuration or an OpenAPI document in, Markdown out. docs/conf.py puts it where a page says
``{commands}``, ``{configuration}`` or ``{routes}``.
"""

import textwrap
from collections.abc import Iterator
from typing import Any

import click

from release.manpage import walk


def commands(root: click.Group) -> str:
    """Every command with its usage, what it says of itself, and its options."""
    return "\n".join(line for context in walk(root, "tapfinger") for line in _command(context))


def _command(context: click.Context) -> Iterator[str]:
    usage = " ".join((context.command_path, *context.command.collect_usage_pieces(context)))
    help_text = textwrap.dedent(context.command.help or "").strip().replace("\b\n", "")
    yield from (f"## {context.command_path}", "```", usage, "```", _plain(help_text), "")
    records = [parameter.get_help_record(context) for parameter in context.command.params]
    if any(records):
        yield from ("| option | |", "|---|---|")
        yield from (f"| `{_cell(record[0])}` | {_cell(_plain(record[1]))} |" for record in records if record)
        yield ""


def configuration(text: str) -> str:
    """The commented file as `tapfinger install` writes it."""
    return f"```toml\n{text}```\n"


def routes(document: dict[str, Any]) -> str:
    """Every route with what it is sent and what it answers, then the types."""
    lines: list[str] = []
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            lines.extend(_route(f"{method.upper()} {path}", operation))
    lines.append("## Types")
    for name, schema in document["components"]["schemas"].items():
        lines.extend(_type(name, schema))
    return "\n".join(lines)


def _route(name: str, operation: dict[str, Any]) -> Iterator[str]:
    yield from (f"## {name}", f"{operation['summary']}.", "")
    for parameter in operation.get("parameters", ()):
        yield from (f"Header `{parameter['name']}`, optional: {parameter['description']}.", "")
    if body := operation.get("requestBody"):
        yield from (f"Body: {_kind(_schema(body))}.", "")
    yield from ("| status | | answer |", "|---|---|---|")
    for status, answer in operation["responses"].items():
        yield f"| {status} | {_cell(answer['description'])} | {_kind(_schema(answer))} |"
    yield ""


def _schema(content: dict[str, Any]) -> dict[str, Any]:
    return next(iter(content["content"].values()))["schema"]


def _type(name: str, schema: dict[str, Any]) -> Iterator[str]:
    yield from (f"### {name}", _plain(schema.get("description", "")), "")
    if "enum" in schema:
        yield from (f"One of {', '.join(f'`{value}`' for value in schema['enum'])}.", "")
    if properties := schema.get("properties"):
        yield from ("| field | type | |", "|---|---|---|")
        for field, kind in properties.items():
            needed = "required" if field in schema.get("required", ()) else ""
            yield f"| `{field}` | {_cell(_kind(kind))} | {needed} |"
        yield ""


def _kind(schema: dict[str, Any]) -> str:
    """A type in words; those of the document are links to where they are described."""
    if reference := schema.get("$ref"):
        name = reference.rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if choices := schema.get("anyOf"):
        return " or ".join(_kind(choice) for choice in choices)
    if schema.get("type") == "array":
        return f"list of {_kind(schema['items'])}" if "items" in schema else "list"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_kind(values)}"
    return f"`{schema.get('type', 'any')}`"


def _plain(text: str) -> str:
    """What Markdown would take for its own, as it stands."""
    return text.replace("``", "`").replace("*", r"\*").replace("<", r"\<").replace("[", r"\[").replace("]", r"\]")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", r"\|")
