"""Where a picture came from, for machines: the IPTC digital source type always, a C2PA manifest on request.

* XMP holds `Iptc4xmpExt:DigitalSourceType` = trainedAlgorithmicMedia (IPTC Photo Metadata Standard,
  Extension schema): a constant, so it changes no picture's determinism and tells nothing of its prompt.
* A C2PA manifest (C2PA 2.2) is signed with the operator's key over the finished file: who made it and
  that it was not changed since. Its signature and its time differ each time.

Not here: prompt, seed and settings (`metadata`), and whether a signer is to be trusted, which is the
reader's to say: `verify` reports whose certificate it was and whether file and signature agree.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sana_service import __version__

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    f"<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
).encode()
XMP_KEYWORD = "XML:com.adobe.xmp"
"""Of the PNG iTXt chunk (XMP Specification Part 3, 1.1.5)."""

_SOURCE_TYPE_KEY = "DigitalSourceType"
# Thumbnails would be a second picture in every file; signing needs no network.
_SETTINGS = {
    "builder": {"thumbnail": {"enabled": False}},
    "verify": {"verify_trust": False, "remote_manifest_fetch": False, "ocsp_fetch": False},
}
_ALGORITHMS = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class SigningError(Exception):
    """A manifest cannot be made; the message is one line."""


class Signer:
    """Puts a signed C2PA manifest into picture files. Safe for threads.

    Args:
        certificate_path: PEM, the signer's certificate first, then those up to its authority.
        key_path: PEM, PKCS#8, of the first certificate: P-256, P-384, P-521, Ed25519 or RSA-PSS.

    Raises:
        SigningError: a file cannot be used, or c2pa-python is not installed.
    """

    def __init__(self, certificate_path: Path, key_path: Path) -> None:
        try:
            import c2pa
        except ImportError as error:
            raise SigningError("c2pa-python is not installed: install sana-service[c2pa]") from error
        self._c2pa: Any = c2pa
        try:
            self._certificates = certificate_path.read_text(encoding="ascii")
            self._key = key_path.read_text(encoding="ascii")
            self._algorithm = _algorithm(self._key)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise SigningError(f"certificate or key cannot be read: {reason}") from error
        self._context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))

    def sign(self, data: bytes, content_type: str) -> bytes:
        """The file with a manifest in it.

        Raises:
            SigningError: the key does not fit the certificate, or the certificate is not for signing.
        """
        c2pa = self._c2pa
        manifest = {
            "claim_generator_info": [{"name": "sana-service", "version": __version__}],
            "format": content_type,
            "assertions": [
                {
                    "label": "c2pa.actions.v2",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": DIGITAL_SOURCE_TYPE}]},
                }
            ],
        }
        signed = io.BytesIO()
        try:
            info = c2pa.C2paSignerInfo(self._algorithm.encode(), self._certificates.encode(), self._key.encode(), None)
            with c2pa.Signer.from_info(info) as signer, c2pa.Builder(manifest, context=self._context) as builder:
                builder.sign(signer, content_type, io.BytesIO(data), signed)
        except Exception as error:  # c2pa's own have no common base below it
            raise SigningError(" ".join(str(error).split())) from error
        return signed.getvalue()

    def check(self) -> None:
        """Sign a small picture.

        Raises:
            SigningError: it fails.
        """
        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "png")
        self.sign(file.getvalue(), "image/png")


@dataclass(frozen=True)
class Manifest:
    """What a file's C2PA manifest says, and whether it holds.

    Args:
        valid: whether file, manifest and signature agree; not whether the signer is to be trusted.
        faults: why not.
        issuer, common_name: of the signer's certificate.
        generator: what made the claim.
        source_type: the IPTC digital source type of the action that created the file.
        signed_at: where an authority says when.
    """

    valid: bool
    faults: tuple[str, ...]
    issuer: str | None
    common_name: str | None
    generator: str | None
    source_type: str | None
    signed_at: str | None


def read_source_type(source: str | Path | bytes) -> str | None:
    """The IPTC digital source type in a PNG's or JPEG's XMP; None without one.

    Raises:
        OSError: the file cannot be read, or is neither PNG nor JPEG.
    """
    from PIL import Image

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=("PNG", "JPEG")) as image:
        xmp: Any = image.info.get("xmp") or image.info.get(XMP_KEYWORD)
    text = xmp.decode("utf-8", errors="replace") if isinstance(xmp, bytes) else str(xmp or "")
    for form in (f":{_SOURCE_TYPE_KEY}>", f':{_SOURCE_TYPE_KEY}="'):
        _, found, rest = text.partition(form)
        if found:
            return rest.partition("<" if form.endswith(">") else '"')[0].strip() or None
    return None


def verify(source: Path | bytes, content_type: str) -> Manifest | None:
    """What the file's C2PA manifest says; None where it has none.

    Raises:
        SigningError: c2pa-python is not installed.
    """
    try:
        import c2pa
    except ImportError as error:
        raise SigningError("c2pa-python is not installed: install sana-service[c2pa]") from error
    data = source if isinstance(source, bytes) else source.read_bytes()
    context = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS))
    try:
        with c2pa.Reader(content_type, io.BytesIO(data), context=context) as reader:
            told = json.loads(reader.json())
    except c2pa.C2paError as error:
        if "ManifestNotFound" in str(error) or "no JUMBF" in str(error):
            return None
        return Manifest(False, (" ".join(str(error).split()),), None, None, None, None, None)
    return _manifest(told)


def _manifest(told: dict[str, Any]) -> Manifest:
    active = told.get("manifests", {}).get(told.get("active_manifest", ""), {})
    signature = active.get("signature_info", {})
    generators = active.get("claim_generator_info") or [{}]
    actions = [
        action
        for assertion in active.get("assertions", [])
        if assertion.get("label", "").startswith("c2pa.actions")
        for action in assertion.get("data", {}).get("actions", [])
    ]
    # A signer that nobody vouches for is no fault of the file's.
    faults = tuple(
        f"{fault.get('code')}: {fault.get('explanation', '')}".rstrip(": ")
        for fault in told.get("validation_status", [])
        if fault.get("code") != "signingCredential.untrusted"
    )
    generator = " ".join(filter(None, (generators[0].get("name"), generators[0].get("version"))))
    return Manifest(
        valid=not faults,
        faults=faults,
        issuer=signature.get("issuer"),
        common_name=signature.get("common_name"),
        generator=generator or None,
        source_type=next((action["digitalSourceType"] for action in actions if "digitalSourceType" in action), None),
        signed_at=signature.get("time"),
    )


def _algorithm(key_pem: str) -> str:
    """C2PA's name for a key's algorithm."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(key_pem.encode(), None)
    except TypeError as error:
        raise ValueError("the key is encrypted") from error
    match key:
        case ec.EllipticCurvePrivateKey() if key.curve.name in _ALGORITHMS:
            return _ALGORITHMS[key.curve.name]
        case ed25519.Ed25519PrivateKey():
            return "ed25519"
        case rsa.RSAPrivateKey():
            return "ps256"
    raise ValueError("the key must be P-256, P-384, P-521, Ed25519 or RSA")
