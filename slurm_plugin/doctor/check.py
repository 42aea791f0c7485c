"""What a check says: one line, and where something is wrong, one line with what to do."""

from typing import Literal

import msgspec

from tapfinger_hpc.config import Config

Status = Literal["ok", "warn", "fail", "skip"]


class Check(msgspec.Struct, frozen=True):
    """One check and how it went."""

    name: str
    status: Status
    """ok; warn: works, but worse than it could; fail: does not work; skip: could not be looked at from here."""
    said: str
    fix: str = ""
    """The next step, as a command where there is one."""


def ok(name: str, said: str) -> Check:
    return Check(name, "ok", said)


def warn(name: str, said: str, fix: str) -> Check:
    return Check(name, "warn", said, fix)


def fail(name: str, said: str, fix: str) -> Check:
    return Check(name, "fail", said, fix)


def skip(name: str, said: str, fix: str = "") -> Check:
    return Check(name, "skip", said, fix)


def needed_to_enforce(config: Config, name: str, said: str, fix: str) -> Check:
    """A failure where jobs are changed; before that it is time enough to be warned."""
    if config.agent.mode == "enforce":
        return fail(name, said, fix)
    return warn(name, f"{said} (needed before mode enforce)", fix)
