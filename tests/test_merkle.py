"""Promises of the Merkle tree and the signed checkpoints: the published vectors, and that no proof can be bent."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from policies.checkpoint import Checkpoint, CheckpointError, Signer, Verifier, load_signer, load_verifier, new_signer
from policies.merkle import (
    EMPTY_ROOT,
    Frontier,
    frontier,
    inclusion_proof,
    leaf_hash,
    root_from_proof,
    stored_count,
    stored_number,
)

# The entries and roots that Certificate Transparency's own tests use (merkletree, "ReferenceMerkleTreeTest").
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def grown(count: int) -> tuple[Frontier, list[bytes], list[bytes]]:
    tree, stored, roots = Frontier(), [], []
    for number in range(count):
        stored += tree.append(leaf_hash(str(number).encode()))
        roots.append(tree.root())
    return tree, stored, roots


def test_the_roots_are_those_of_certificate_transparencys_tests() -> None:
    tree = Frontier()
    assert tree.root() == EMPTY_ROOT
    for entry, root in zip(ENTRIES, ROOTS, strict=True):
        tree.append(leaf_hash(entry))
        assert tree.root().hex() == root


def test_hashes_are_stored_in_the_order_of_gos_sumdb() -> None:
    # golang.org/x/mod/sumdb/tlog: level and number in the level, in the order of the index.
    order = [
        (0, 0),
        (0, 1),
        (1, 0),
        (0, 2),
        (0, 3),
        (1, 1),
        (2, 0),
        (0, 4),
        (0, 5),
        (1, 2),
        (0, 6),
        (0, 7),
        (1, 3),
        (2, 1),
        (3, 0),
    ]
    assert [stored_number(level, index) for level, index in order] == list(range(len(order)))
    assert [stored_count(size) for size in range(9)] == [0, 1, 3, 4, 7, 8, 10, 11, 15]


@given(st.integers(1, 200), st.data())
def test_every_entry_has_a_proof_that_leads_to_the_root_and_no_other_entry_has_it(
    size: int, data: st.DataObject
) -> None:
    _, stored, roots = grown(size)
    index = data.draw(st.integers(0, size - 1))
    leaf = leaf_hash(str(index).encode())
    proof = inclusion_proof(index, size, stored.__getitem__)
    assert root_from_proof(leaf, index, size, proof) == roots[size - 1]
    assert root_from_proof(leaf_hash(b"other"), index, size, proof) != roots[size - 1]
    other = data.draw(st.integers(0, size - 1))
    if other != index:
        try:
            assert root_from_proof(leaf, other, size, proof) != roots[size - 1]
        except ValueError:
            pass
    for bent in ([*proof, b"\0" * 32], proof[:-1]):
        if bent != proof:
            with pytest.raises(ValueError, match="too"):
                root_from_proof(leaf, index, size, bent)


@given(st.integers(0, 300))
def test_a_frontier_from_stored_hashes_is_the_one_that_grew(size: int) -> None:
    tree, stored, _ = grown(size)
    assert len(stored) == stored_count(size)
    again = frontier(size, stored.__getitem__)
    assert (again.root(), again.size) == (tree.root(), size)


# ---- checkpoints ----


def signer() -> Signer:
    return Signer("example.org/log", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def test_a_checkpoint_is_a_signed_note_of_three_lines() -> None:
    note = signer().sign(7, leaf_hash(b"x"))
    body, _, signature = note.text.partition("\n\n")
    assert body.split("\n") == ["example.org/log", "7", base64.b64encode(leaf_hash(b"x")).decode()]
    assert signature.startswith("\u2014 example.org/log ") and signature.endswith("\n")
    again = Checkpoint.read(note.text)
    assert again == note
    again.verify(signer().verifier)


def test_a_verifier_key_is_read_as_it_is_written_and_has_the_published_form() -> None:
    # The key of the Go checksum database, from golang.org/x/mod/sumdb.
    text = "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert str(Verifier.read(text)) == text
    assert Verifier.read(str(signer().verifier)) == signer().verifier
    for wrong in (
        "",
        "a+b",
        text.replace("033de0ae", "033de0af"),
        text.replace("Ac4z", "Bc4z"),
        text.replace("sum.", "som."),
    ):
        with pytest.raises(CheckpointError):
            Verifier.read(wrong)


@given(st.integers(0, 150), st.integers(1, 255))
def test_a_checkpoint_with_any_byte_changed_does_not_verify(at: int, change: int) -> None:
    text = bytearray(signer().sign(123, leaf_hash(b"x")).text.encode())
    text[at % len(text)] ^= change
    with pytest.raises(CheckpointError):
        Checkpoint.read(bytes(text).decode("utf-8", "replace")).verify(signer().verifier)


def test_a_checkpoint_of_another_log_or_key_is_refused() -> None:
    note = signer().sign(1, EMPTY_ROOT)
    other = Signer("example.org/log", Ed25519PrivateKey.generate()).verifier
    elsewhere = Signer("example.net/log", Ed25519PrivateKey.from_private_bytes(bytes(range(32)))).verifier
    for verifier in (other, elsewhere):
        with pytest.raises(CheckpointError):
            note.verify(verifier)


def test_the_key_is_its_owners_alone_and_one_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    first = new_signer()
    first.keep(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signer(path).verifier == first.verifier == load_verifier(path)
    assert new_signer().verifier != first.verifier
    path.chmod(0o640)
    with pytest.raises(CheckpointError, match="can be read by others"):
        load_signer(path)
    path.chmod(0o600)
    path.write_text("nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        load_signer(path)
