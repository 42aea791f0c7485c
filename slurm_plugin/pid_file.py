"""What Slurm's pid files say."""

from pathlib import Path


def pid_in(file: Path) -> int:
    """The number in its first line. A reconfigured slurmctld of 24.11 or newer writes its own over the old one, of
    which the rest stays where it was longer: ``404``, and then a line ``5``.

    Raises:
        OSError: it cannot be read.
        ValueError: there is no number.
    """
    return int(file.read_text(encoding="ascii").partition("\n")[0])
