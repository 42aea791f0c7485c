"""Where an installation lies: what the configuration says, and the folders of systemd. Pure."""

from collections.abc import Iterable
from pathlib import Path

import msgspec

from tapfinger_hpc.config import DEFAULT_PATH, Config

CLASSES = "/var/lib/tapfinger/classes.json"


class Paths(msgspec.Struct, frozen=True):
    """The folders that agent and server need."""

    config: str
    state: tuple[str, ...]
    cache: tuple[str, ...]
    run: tuple[str, ...]
    units: str = "/etc/systemd/system"
    tmpfiles: str = "/etc/tmpfiles.d/tapfinger.conf"
    record: str = "/var/lib/tapfinger-install/record.json"
    """Not beside the journal: whoever may write there could have root undo what was never done."""

    @classmethod
    def of(cls, config: Config, config_file: str = str(DEFAULT_PATH)) -> "Paths":
        agent, server = config.agent, config.server
        return cls(
            config=config_file,
            state=_folders((agent.journal, agent.classes_file)),
            cache=(server.compiled,),
            run=_folders((agent.hook_file, agent.wake_socket, agent.disable_file, server.socket)),
        )

    @property
    def writable(self) -> tuple[str, ...]:
        """Where agent and server write."""
        return (*self.run, *self.state, *self.cache)


def _folders(files: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(Path(file).parent) for file in files if file))
