"""The man page tapfinger(1), made from what the commands say of themselves. Pure: commands in, roff out."""

import re
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime

import click

_FILES = (
    ("/etc/tapfinger/tapfinger.toml", "Configuration; every key stands in it with its reason and its default."),
    ("/var/lib/tapfinger", "Journal of decisions, and what was learned of job classes."),
    ("/run/tapfinger/disabled", "While this file exists nothing is changed."),
)


def render(root: click.Group, version: str, epoch_s: int) -> str:
    """One page with all commands."""
    date = datetime.fromtimestamp(epoch_s, UTC).date()
    lines = [
        f'.TH TAPFINGER 1 "{date}" "TapFinger-HPC {version}" "User Commands"',
        ".SH NAME",
        r"tapfinger \- learned placement and resource amounts for jobs on small Slurm clusters",
        ".SH SYNOPSIS",
        r"\fBtapfinger\fR \fICOMMAND\fR [\fIOPTIONS\fR] [\fIARGUMENTS\fR]",
        ".SH DESCRIPTION",
        *_paragraphs(root),
        "Each command explains itself with \\fB\\-\\-help\\fR.",
        ".SH COMMANDS",
        *(line for context in walk(root, "tapfinger") for line in _command(context)),
        ".SH FILES",
        *(line for path, what in _FILES for line in (".TP", f"\\fI{_text(path)}\\fR", _text(what))),
        ".SH SEE ALSO",
        r"\fBsbatch\fR(1), \fBscontrol\fR(1), \fBslurm.conf\fR(5)",
    ]
    return "\n".join(lines) + "\n"


def walk(group: click.Group, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Every command that does something, groups entered, in the order of their names."""
    context = click.Context(group, info_name=name, parent=parent)
    for child in group.list_commands(context):
        command = group.get_command(context, child)
        assert command is not None
        if isinstance(command, click.Group):
            yield from walk(command, child, context)
        else:
            yield click.Context(command, info_name=child, parent=context)


def _command(context: click.Context) -> Iterator[str]:
    usage = " ".join(context.command.collect_usage_pieces(context))
    yield f".SS {_text(context.command_path)} {_text(usage)}"
    yield from _paragraphs(context.command)
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if record and "--help" not in parameter.opts:
            yield from (".TP", f"\\fB{_text(record[0])}\\fR", _text(" ".join(record[1].split())) or "\\&")


def _paragraphs(command: click.Command) -> Iterator[str]:
    text = textwrap.dedent(command.help or "").strip()
    for paragraph in filter(None, re.split(r"\n\s*\n", text)):
        yield from (".PP", _text(" ".join(paragraph.replace("\b", "").split())))


def _text(text: str) -> str:
    """As roff takes it: a line that begins with a dot or a quote would be a command."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "\\(ga").replace("'", "\\(aq")
    return "\\&" + escaped if escaped.startswith(".") else escaped
