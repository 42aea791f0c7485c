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
    context = click.Context(root, info_name="tapfinger")
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
        *_commands(context),
        ".SH FILES",
        *(line for path, what in _FILES for line in (".TP", f"\\fI{_text(path)}\\fR", _text(what))),
        ".SH SEE ALSO",
        r"\fBsbatch\fR(1), \fBscontrol\fR(1), \fBslurm.conf\fR(5)",
    ]
    return "\n".join(lines) + "\n"


def _commands(context: click.Context) -> Iterator[str]:
    group = context.command
    assert isinstance(group, click.Group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        if isinstance(command, click.Group):
            yield from _commands(inner)
        else:
            yield from _command(inner)


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
