"""Names of artifacts: from whatever bytes an experiment chose to a relative path that is safe to write and to print."""

import hashlib
import unicodedata

_MAX_PART = 120
_MAX_DEPTH = 16


def safe_name(name: str) -> str | None:
    """A relative, normalised, printable form of `name`, or None if no file may have it.

    What is not printable (control characters, bytes that are no UTF-8, direction marks) and what names mean to a
    shell's eye (a leading dash or dot) is written as %XX; parts that are too long are cut and marked with a digest.
    """
    parts = name.split("/")
    if len(parts) > _MAX_DEPTH or any(part in {"", ".", ".."} for part in parts):
        return None
    return "/".join(_safe_part(part) for part in parts)


def _safe_part(part: str) -> str:
    text = "".join(character if _plain(character) else _escape(character) for character in part)
    if text[0] in "-.~":
        text = _escape(text[0]) + text[1:]
    if len(text.encode()) > _MAX_PART:
        digest = hashlib.sha256(_bytes(part)).hexdigest()[:16]
        text = text.encode()[: _MAX_PART - 17].decode(errors="ignore") + "-" + digest
    return text


def _plain(character: str) -> bool:
    return character not in "%\\" and (character == " " or unicodedata.category(character)[0] not in "CZ")


def _escape(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in _bytes(character))


def _bytes(text: str) -> bytes:
    """The bytes of a name as the container's file system has it; halves of characters are somebody's invention."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
