"""MetaImage's compressed values, checked before ITK sees them: on some damaged streams its reader never ends."""

from __future__ import annotations

import zlib
from pathlib import Path

__all__ = ["holds_whole_values"]

_HEADER = 2**16  # bytes; real ones have less than one KiB
_CHUNK = 2**22


def holds_whole_values(path: Path, n_bytes: int) -> bool:
    """Return whether a ``.mha`` or ``.mhd`` file's values are uncompressed, or a whole stream of ``n_bytes``."""
    with path.open("rb") as opened:
        head = opened.read(_HEADER)
    fields: dict[str, str] = {}
    position = 0
    while "ElementDataFile" not in fields and position < len(head):
        end = head.find(b"\n", position)
        end = len(head) if end < 0 else end
        name, _, value = head[position:end].decode("latin-1").partition("=")
        fields[name.strip()] = value.strip()
        position = end + 1
    # As MetaIO: anything that begins with t or 1 is true.
    if fields.get("CompressedData", "")[:1] not in ("T", "t", "1"):
        return True
    where = fields.get("ElementDataFile", "")
    local = where.upper() == "LOCAL"
    file = path if local else path.parent / Path(where).name
    return file.is_file() and _inflates_to(file, position if local else 0, n_bytes)


def _inflates_to(path: Path, start: int, n_bytes: int) -> bool:
    """Return whether a zlib or gzip stream is whole and of ``n_bytes``; not a byte more is unpacked than that."""
    stream = zlib.decompressobj(47)  # 47: of either kind
    size = 0
    with path.open("rb") as file:
        file.seek(start)
        try:
            while not stream.eof and size <= n_bytes:
                packed = stream.unconsumed_tail or file.read(_CHUNK)
                if not packed:
                    return False
                size += len(stream.decompress(packed, _CHUNK))
        except zlib.error:
            return False
    return size == n_bytes
