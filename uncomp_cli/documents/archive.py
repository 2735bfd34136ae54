"""Files that are ZIP archives (.docx, .xlsx, .epub, …): opened with what they unpack to counted, not believed.

What an archive's directory says of sizes is a claim of whoever wrote it: members are read through a counter, all of one
archive together. An archive within an archive is not opened.
"""

import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO

from uncomp_cli.documents.text import Limits
from uncomp_cli.errors import DocumentError

_BLOCK_BYTES = 2**20
# What zipfile raises for a damaged archive; NotImplementedError is its word for a compression that it does not know.
DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, OSError, EOFError, ValueError)


class Archive:
    """The members of a ZIP file by name; DocumentError where it is none, or damaged, or locked by a password."""

    def __init__(self, data: bytes, limits: Limits, *, kind: str) -> None:
        self._limits, self.kind, self._read_bytes = limits, kind, 0
        try:
            self._zip = zipfile.ZipFile(BytesIO(data))
        except DAMAGE as error:
            raise damaged(kind, error) from error
        limits.check_pages(len(self._zip.namelist()), "members")

    @property
    def names(self) -> Sequence[str]:
        """All members, in the archive's order."""
        return self._zip.namelist()

    def read(self, name: str) -> bytes:
        """A member's bytes. KeyError: there is no such member. DoesNotFitError: the archive unpacks to too much."""
        parts: list[bytes] = []
        try:
            with self._zip.open(name) as member:
                while block := member.read(_BLOCK_BYTES):
                    self._read_bytes += len(block)
                    self._limits.check_expanded(self._read_bytes)
                    parts.append(block)
        except RuntimeError as error:  # what zipfile says of a password
            raise DocumentError(f"it is a {self.kind} locked by a password", hint="save it without one") from error
        except DAMAGE as error:
            raise damaged(self.kind, error) from error
        return b"".join(parts)


def damaged(kind: str, error: Exception) -> DocumentError:
    """A file that its reader cannot make sense of."""
    detail = str(error).strip().split("\n")[0][:200] or type(error).__name__
    return DocumentError(f"it is no {kind}, or a damaged one ({detail})", hint="open it in a viewer and save it again")
