"""Merkle trees as in RFC 6962, section 2.1: roots, and proofs that an entry is in a tree.

leaf = SHA-256(0x00 ‖ entry), node = SHA-256(0x01 ‖ left ‖ right), the root of nothing = SHA-256("").
Hashes that are kept are numbered as Go's sumdb does (`tlog.StoredHashIndex`): every leaf, and after it each node that
it completes, so that a tree only ever grows at its end.
"""

from collections.abc import Callable, Iterable
from hashlib import sha256

HASH_BYTES = 32
EMPTY_ROOT = sha256(b"").digest()

Stored = Callable[[int], bytes]
"""The hash of a number in the stored order."""


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry."""
    return sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of two subtrees, the left one complete."""
    return sha256(b"\1" + left + right).digest()


class Frontier:
    """The roots of the complete subtrees of a growing tree, largest first: all that appending needs to know."""

    def __init__(self, size: int = 0, roots: Iterable[bytes] = ()) -> None:
        self.size = size
        self._roots = list(roots)

    def append(self, leaf: bytes) -> list[bytes]:
        """Adds a leaf's hash; returns the hashes to store: the leaf's and those of the nodes that it completes."""
        made, size = [leaf], self.size
        while size & 1:
            made.append(node_hash(self._roots.pop(), made[-1]))
            size >>= 1
        self._roots.append(made[-1])
        self.size += 1
        return made

    def root(self) -> bytes:
        """The root of the tree so far."""
        if not self._roots:
            return EMPTY_ROOT
        total = self._roots[-1]
        for left in reversed(self._roots[:-1]):
            total = node_hash(left, total)
        return total


def stored_number(level: int, index: int) -> int:
    """Where the node at `level` (0: leaves) and `index` is in the stored order."""
    leaf = ((index + 1) << level) - 1  # the leaf that completes it
    return stored_count(leaf) + level


def stored_count(size: int) -> int:
    """How many hashes are stored for a tree of `size` leaves: the leaves, and one node less for each subtree's root."""
    return 2 * size - size.bit_count()


def frontier(size: int, stored: Stored) -> Frontier:
    """The frontier of a tree whose hashes are stored."""
    roots, start = [], 0
    for level in reversed(range(size.bit_length())):
        if size >> level & 1:
            roots.append(stored(stored_number(level, start >> level)))
            start += 1 << level
    return Frontier(size, roots)


def inclusion_proof(index: int, size: int, stored: Stored) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` leaves, from the leaf upward (RFC 6962, 2.1.1)."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} entries has no entry {index}")
    return _path(index, 0, size, stored)


def _path(index: int, start: int, end: int, stored: Stored) -> list[bytes]:
    if end - start == 1:
        return []
    split = start + _left(end - start)
    if index < split:
        return [*_path(index, start, split, stored), _subtree(split, end, stored)]
    return [*_path(index, split, end, stored), _subtree(start, split, stored)]


def _subtree(start: int, end: int, stored: Stored) -> bytes:
    size = end - start
    if size & (size - 1) == 0:
        level = size.bit_length() - 1
        return stored(stored_number(level, start >> level))
    split = start + _left(size)
    return node_hash(_subtree(start, split, stored), _subtree(split, end, stored))


def _left(size: int) -> int:
    """The largest power of two below `size`."""
    return 1 << ((size - 1).bit_length() - 1)


def root_from_proof(leaf: bytes, index: int, size: int, proof: Iterable[bytes]) -> bytes:
    """The root that `proof` leads to (RFC 9162, 2.1.3.2). Raises ValueError for a proof of another shape."""
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} entries has no entry {index}")
    place, last, total = index, size - 1, leaf
    for step in proof:
        if last == 0:
            raise ValueError("the proof is too long")
        if place & 1 or place == last:
            total = node_hash(step, total)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            total = node_hash(total, step)
        place, last = place >> 1, last >> 1
    if last:
        raise ValueError("the proof is too short")
    return total
