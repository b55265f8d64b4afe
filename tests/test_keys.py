"""Promises of keys and signatures: the standards' own vectors, honest grades, and no secret that shows."""

import hashlib
import hmac
import json
import stat
from pathlib import Path
from typing import Any

import pytest
from bip32 import BIP32
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic

from orchestrator.agents.keys import PATH, SigningKey, address_of, new_mnemonic, verifies
from orchestrator.agents.signatures import PinnedKeys, grade, sign
from orchestrator.errors import UsageProblem
from policies.state import write_secret

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
WORDS = "abandon " * 23 + "art"
KEY = SigningKey((1).to_bytes(32, "big"))


# ---- the standards' vectors ----


@pytest.mark.parametrize(
    ("entropy", "words", "seed"),
    [  # BIP-39's reference vectors, passphrase TREZOR
        (
            "00" * 32,
            WORDS,
            "bda85446c68413707090a52022edd26a1c9462295029f2e60cd7c4f2bbd3097170af7a4d73245cafa9c3cca8d561a7c3de6f5d4a10be8ed2a5e608d68f92fcc8",
        ),
        (
            "ff" * 32,
            "zoo " * 23 + "vote",
            "dd48c104698c30cfe2b6142103248622fb7bb0ff692eebb00089b32d22484e1613912f0a5b694407be899ffd31ed3992c456cdf60f5d4564b8ba3f05a69890ad",
        ),
    ],
)
def test_mnemonics_are_those_of_bip_39(entropy: str, words: str, seed: str) -> None:
    assert Mnemonic("english").to_mnemonic(bytes.fromhex(entropy)) == words
    assert Mnemonic.to_seed(words, "TREZOR").hex() == seed


def test_derivation_is_that_of_bip_32() -> None:
    # BIP-32's test vector 1.
    root = BIP32.from_seed(bytes.fromhex("000102030405060708090a0b0c0d0e0f"))
    assert root.get_xpriv_from_path("m/0'/1/2'/2/1000000000") == (
        "xprvA41z7zogVVwxVSgdKUHDy1SKmdb533PjDz7J6N6mV6uS3ze1ai8FHa8kmHScGpWmj4WggLyQjgPie1rFSruoUihUZREPSL39UNdE3BBDu76"
    )


def test_a_mnemonic_gives_the_key_at_lumenbridges_path() -> None:
    secret, chain = _split(hmac.digest(b"Bitcoin seed", Mnemonic.to_seed(WORDS), "sha512"))
    for level in PATH.split("/")[1:]:
        index = int(level.rstrip("'")) + (1 << 31 if level.endswith("'") else 0)
        point = SigningKey(secret).public
        data = (b"\0" + secret if index >> 31 else point) + index.to_bytes(4, "big")
        left, chain = _split(hmac.digest(chain, data, "sha512"))
        secret = ((int.from_bytes(left, "big") + int.from_bytes(secret, "big")) % ORDER).to_bytes(32, "big")
    assert SigningKey.from_mnemonic(f"  {WORDS.upper()}\n").public == SigningKey(secret).public


def _split(digest: bytes) -> tuple[bytes, bytes]:
    return digest[:32], digest[32:]


@pytest.mark.parametrize(
    ("secret", "message", "r", "s"),
    [  # The community's vectors of RFC 6979 on secp256k1 with SHA-256, low s.
        (
            1,
            b"Satoshi Nakamoto",
            "934b1ea10a4b3c1757e2b0c017d0b6143ce3c9a7e6a4a49860d7a6ab210ee3d8",
            "2442ce9d2b916064108014783e923ec36b49743e2ffa1c4496f01a512aafd9e5",
        ),
        (
            1,
            b"All those moments will be lost in time, like tears in rain. Time to die...",
            "8600dbd41e348fe5c9465ab92d23e3db8b98b873beecd930736488696438cb6b",
            "547fe64427496db33bf66019dacbf0039c04199abb0122918601db38a72cfc21",
        ),
        (
            ORDER - 1,
            b"Satoshi Nakamoto",
            "fd567d121db66e382991534ada77a6bd3106f0a1098c231e47993447cd6af2d0",
            "6b39cd0eb1bc8603e159ef5c20a5c8ad685a45b06ce9bebed3f153d10d93bed5",
        ),
    ],
)
def test_signatures_on_secp256k1_are_deterministic_as_rfc_6979_has_it(
    secret: int, message: bytes, r: str, s: str
) -> None:
    signature = SigningKey(secret.to_bytes(32, "big")).sign(message)
    assert decode_dss_signature(signature) == (int(r, 16), int(s, 16))


def test_the_library_signs_as_the_rfcs_own_vector() -> None:
    # RFC 6979, A.2.5: P-256, SHA-256, "sample".
    secret = 0xC9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721
    key = ec.derive_private_key(secret, ec.SECP256R1())
    r, s = decode_dss_signature(key.sign(b"sample", ec.ECDSA(hashes.SHA256(), deterministic_signing=True)))
    assert f"{r:x}" == "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    assert f"{s:x}" == "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"


def test_addresses_are_base58check_of_the_public_keys_hash() -> None:
    assert KEY.address == "1BgGZ9tcN4rm9KBzDn7KprQz87SZ26SAMH"
    assert address_of(KEY.public) == KEY.address


@given(st.integers(1, ORDER - 1), st.binary(max_size=200))
def test_what_is_signed_verifies_has_a_low_s_and_nothing_else_verifies(secret: int, message: bytes) -> None:
    key = SigningKey(secret.to_bytes(32, "big"))
    signature = key.sign(message)
    r, s = decode_dss_signature(signature)
    assert s <= ORDER // 2
    assert verifies(key.public, signature, message)
    assert verifies(key.public, encode_dss_signature(r, ORDER - s), message)  # others may sign so
    assert not verifies(key.public, signature, message + b"x")
    assert not verifies(SigningKey(((secret % (ORDER - 1)) + 1).to_bytes(32, "big")).public, signature, message)


# ---- what is no key ----


@pytest.mark.parametrize("text", ["", "zz", "00" * 32, f"{ORDER:064x}", "11" * 31, "11" * 33])
def test_what_is_no_private_key_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        SigningKey.from_hex(text)
    assert not text or text not in str(refused.value)


@pytest.mark.parametrize("words", ["", "abandon " * 24, "abandon " * 11 + "about", "hunter2 " * 24])
def test_what_is_no_mnemonic_is_refused_without_repeating_it(words: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        SigningKey.from_mnemonic(words)
    assert "abandon" not in str(refused.value) and "hunter2" not in str(refused.value)


def test_a_new_mnemonic_is_another_each_time_and_makes_a_key() -> None:
    first, second = new_mnemonic(), new_mnemonic()
    assert first != second and len(first.split()) == 24
    assert SigningKey.from_mnemonic(first).public != SigningKey.from_mnemonic(second).public


def test_a_keys_repr_shows_its_public_half_only() -> None:
    key = SigningKey.from_hex("11" * 32)
    assert "1111" not in repr(key) and key.public.hex() in repr(key)


def test_a_secret_file_is_its_owners_alone_and_never_replaced(tmp_path: Path) -> None:
    write_secret(tmp_path / "a/key", "first")
    assert stat.S_IMODE((tmp_path / "a/key").stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_secret(tmp_path / "a/key", "second")
    assert (tmp_path / "a/key").read_text() == "first"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


# ---- grades ----

RESULT = {"agentName": "A", "response": "für 1.5 % – ok", "n": [1, 2.5, None, True]}


def signed(**changes: Any) -> dict[str, Any]:
    return {**RESULT, "_signature": {**sign(KEY, RESULT, "A"), **changes}, "_llm": {"model": "m"}}


def test_a_signature_over_the_content_is_content_bound() -> None:
    found = grade(signed())
    assert (found.grade, found.identity, found.public_key) == ("content-bound", "A", KEY.public.hex())
    assert grade(json.loads(json.dumps(signed()))).grade == "content-bound"


def test_a_changed_content_is_no_longer_bound() -> None:
    assert grade({**signed(), "response": "other"}).grade == "signature-valid"


@pytest.mark.parametrize("reading", ["text", "bytes", "digest"])
def test_a_signature_of_the_hash_is_valid_under_each_reading_of_the_documentation(reading: str) -> None:
    digest = hashlib.sha256(b"something that nobody documented").digest()
    message = digest.hex().encode() if reading == "text" else digest
    signature = KEY.sign(message)
    if reading == "digest":
        raw = ec.derive_private_key(1, ec.SECP256K1())
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

        signature = raw.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
    found = grade(signed(responseHash=digest.hex(), signature=signature.hex()))
    assert found.grade == "signature-valid"


@pytest.mark.parametrize(
    "changes",
    [
        {"signature": KEY.sign(b"another message").hex()},
        {"signature": "zz"},
        {"signature": None},
        {"publicKey": SigningKey((2).to_bytes(32, "big")).public.hex()},
        {"publicKey": "02" + "00" * 32},
        {"address": SigningKey((2).to_bytes(32, "big")).address},
        {"address": None},
        {"responseHash": 7},
    ],
)
def test_a_signature_that_does_not_fit_is_invalid(changes: dict[str, Any]) -> None:
    assert grade(signed(**changes)).grade == "invalid"


def test_no_signature_is_unsigned_and_one_that_is_no_object_invalid() -> None:
    assert grade(RESULT).grade == "unsigned"
    assert grade({**RESULT, "_signature": None}).grade == "unsigned"
    assert grade({**RESULT, "_signature": "trust me"}).grade == "invalid"


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=5).filter(lambda key: not key.startswith("_")), JSON, max_size=4))
def test_any_result_that_we_sign_is_content_bound_after_the_wire(result: dict[str, Any]) -> None:
    wire = json.loads(json.dumps({**result, "_signature": sign(KEY, result, "A")}))
    assert grade(wire).grade == "content-bound"


@given(st.dictionaries(st.sampled_from(["signature", "publicKey", "responseHash", "address", "agentIdentity"]), JSON))
def test_any_signature_gets_a_grade(said: dict[str, Any]) -> None:
    assert grade({"_signature": said}).grade in {"unsigned", "invalid"}


def test_the_first_key_is_pinned_and_another_is_told_until_it_is_forgotten(tmp_path: Path) -> None:
    pins = PinnedKeys(tmp_path / "keys.sqlite")
    assert pins.check("https://a", "Agent", "k1") is None
    assert pins.check("https://a", "Agent", "k1") is None
    assert PinnedKeys(tmp_path / "keys.sqlite").check("https://a", "Agent", "k2") == "k1"
    assert pins.check("https://b", "Agent", "k2") is None
    assert pins.check("https://a", "Agent", "k2") == "k1"
    assert pins.forget("Agent") == 2
    assert pins.check("https://a", "Agent", "k2") is None
    assert pins.all() == [("https://a", "Agent", "k2")]
