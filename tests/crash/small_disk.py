"""A file system of a few megabytes that a test can fill: a tmpfs, which only root can mount."""

import contextlib
import os
import subprocess
from pathlib import Path

BLOCK = b"\0" * 65_536
WHY_ABSENT = "a file system of its own can only be mounted by root"


class SmallDisk:
    """A mounted tmpfs.

    Raises:
        PermissionError: we may not mount one.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0777", "tmpfs", str(folder)],
            capture_output=True,
            check=False,
        )
        if done.returncode:
            folder.rmdir()
            raise PermissionError(WHY_ABSENT)

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self, *, spare: int = 0) -> None:
        """Take all the room there is but `spare` bytes."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            for size in (len(BLOCK), 4_096):
                with contextlib.suppress(OSError):
                    while file.write(BLOCK[:size]) == size:
                        pass
        os.truncate(self._filler, max(0, self._filler.stat().st_size - spare))

    def make_room(self) -> None:
        """Give it back."""
        self._filler.unlink()

    def unmount(self) -> None:
        """Let it go, with all that is on it."""
        subprocess.run(["umount", "-l", str(self.folder)], check=False)
