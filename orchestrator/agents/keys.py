"""secp256k1 keys: from a BIP-39 mnemonic or as hex; signing as RFC 6979 says, addresses as Bitcoin's.

A key is only ever held in memory and in the file that its owner asked for. Nothing here prints one: `repr` shows the
public half.
"""

import hashlib
from typing import Self

import base58
from bip32 import BIP32
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    Prehashed,
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from mnemonic import Mnemonic

from orchestrator.errors import UsageProblem

PATH = "m/44'/236'/0'/0/0"
"""Where Lumenbridge's keys are derived (BIP-44; 236 is Bitcoin SV's coin type)."""
WORDS = 24
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
"""Of secp256k1 (SEC 2, 2.4.1)."""
_CURVE = ec.SECP256K1()


class SigningKey:
    """A private key on secp256k1."""

    def __init__(self, secret: bytes) -> None:
        """secret: 32 bytes, big-endian. Raises ValueError where it is not a key on the curve."""
        number = int.from_bytes(secret, "big")
        if len(secret) != 32 or not 0 < number < _ORDER:
            raise ValueError("not a private key on secp256k1")
        self._key = ec.derive_private_key(number, _CURVE)
        self.public = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
        """33 bytes, compressed (SEC 1)."""

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """Raises UsageProblem, which does not repeat the text."""
        try:
            return cls(bytes.fromhex(text.strip()))
        except ValueError:
            raise UsageProblem(
                "LUMENBRIDGE_PRIVATE_KEY is not a private key: 64 hexadecimal digits are needed"
            ) from None

    @classmethod
    def from_mnemonic(cls, words: str) -> Self:
        """Raises UsageProblem, which does not repeat the words."""
        text = " ".join(words.split()).lower()
        if len(text.split()) != WORDS or not Mnemonic("english").check(text):
            raise UsageProblem(
                f"LUMENBRIDGE_MNEMONIC is not a mnemonic of {WORDS} English BIP-39 words (or one is misspelt)"
            )
        return cls(BIP32.from_seed(Mnemonic.to_seed(text)).get_privkey_from_path(PATH))

    @property
    def address(self) -> str:
        """The P2PKH address of the public key."""
        return address_of(self.public)

    def sign(self, message: bytes) -> bytes:
        """ECDSA of SHA-256(message), deterministic (RFC 6979), DER, with the lower of the two values of s (BIP 146)."""
        signature = self._key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))
        r, s = decode_dss_signature(signature)
        return encode_dss_signature(r, min(s, _ORDER - s))

    def __repr__(self) -> str:
        return f"SigningKey({self.public.hex()})"


def new_mnemonic() -> str:
    """24 English words from 256 bits of the system's randomness."""
    return Mnemonic("english").generate(strength=256)


def verifies(public: bytes, signature: bytes, message: bytes, *, hashed: bool = False) -> bool:
    """Whether a DER signature is `public`'s over SHA-256(message), or, `hashed`, over the 32 bytes as they are."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE, public)
        digest = Prehashed(hashes.SHA256()) if hashed else hashes.SHA256()
        key.verify(signature, message, ec.ECDSA(digest))
    except (ValueError, InvalidSignature):
        return False
    return True


def address_of(public: bytes) -> str:
    """The Base58Check P2PKH address (version 0x00) of HASH160 of a public key's bytes."""
    inner = hashlib.sha256(public).digest()
    return base58.b58encode_check(b"\0" + hashlib.new("ripemd160", inner).digest()).decode()
