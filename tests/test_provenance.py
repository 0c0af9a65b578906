"""The IPTC digital source type, and C2PA manifests by a certificate made here."""

from __future__ import annotations

import asyncio
import datetime
import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from sana_service import metadata
from sana_service.images import Encoder, encode
from sana_service.metadata import ImageMetadata
from sana_service.provenance import DIGITAL_SOURCE_TYPE, Signer, SigningError, read_source_type, verify
from sana_service.settings import SettingsError, load_settings
from sana_service.startup import check

PIXELS = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)
TOLD = ImageMetadata("a reef", "", "sprint", "tiny", 2, 5.0, 7, 64, 64, "SCM")


def authority(folder: Path, key: Any = None) -> tuple[Path, Path]:
    """A root, and a certificate under it as C2PA 2.2 (14.5.1) wants one: PEM files of chain and key."""
    root_key, key = ec.generate_private_key(ec.SECP256R1()), key or ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, issuer: str, public: Any, is_root: bool) -> x509.Certificate:
        def named(text: str) -> x509.Name:
            organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Test Pictures")
            return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text), organization])

        usage = dict.fromkeys(
            (
                "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
            ),
            False,
        )  # fmt: skip
        usage["key_cert_sign" if is_root else "digital_signature"] = True
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(named(issuer))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
        )
        if not is_root:
            purpose = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
            builder = builder.add_extension(purpose, critical=False)
        return builder.sign(root_key, hashes.SHA256())

    root = build("Root", "Root", root_key.public_key(), is_root=True)
    leaf = build("Sana test", "Root", key.public_key(), is_root=False)
    chain = b"".join(each.public_bytes(serialization.Encoding.PEM) for each in (leaf, root))
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "chain.pem", folder / "key.pem"


@pytest.fixture
def signer(tmp_path: Path) -> Signer:
    return Signer(*authority(tmp_path))


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
@pytest.mark.parametrize("told", [None, TOLD])
def test_every_picture_says_that_a_model_made_it(output_format, told):
    made = encode(PIXELS, output_format, told)
    assert DIGITAL_SOURCE_TYPE == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert read_source_type(made.data) == DIGITAL_SOURCE_TYPE
    with Image.open(io.BytesIO(made.data)) as image:
        xmp = image.info.get("xmp") or image.info["XML:com.adobe.xmp"]
    found = ElementTree.fromstring(xmp).iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert [element.text for element in found] == [DIGITAL_SOURCE_TYPE]
    assert metadata.read(made.data) == told
    assert encode(PIXELS, output_format, told) == made


def test_other_pictures_say_nothing():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "png")
    assert read_source_type(file.getvalue()) is None


def test_the_other_form_of_xmp_is_read():
    file = io.BytesIO()
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description Iptc4xmpExt:DigitalSourceType="http://a/b"/></x:xmpmeta>'
    )
    Image.fromarray(PIXELS).save(file, "jpeg", xmp=xmp)
    assert read_source_type(file.getvalue()) == "http://a/b"


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_a_signed_picture_verifies_and_keeps_everything_else(signer, output_format):
    plain = encode(PIXELS, output_format, TOLD)
    signed = signer.sign(plain.data, plain.content_type)
    manifest = verify(signed, plain.content_type)
    assert manifest is not None
    assert (manifest.valid, manifest.faults) == (True, ())
    assert (manifest.common_name, manifest.issuer) == ("Sana test", "Test Pictures")
    assert str(manifest.generator).startswith("sana-service ")
    assert manifest.source_type == DIGITAL_SOURCE_TYPE
    assert metadata.read(signed) == TOLD
    assert metadata.read_infotext(signed) == metadata.read_infotext(plain.data)
    assert read_source_type(signed) == DIGITAL_SOURCE_TYPE
    with Image.open(io.BytesIO(signed)) as image, Image.open(io.BytesIO(plain.data)) as before:
        assert np.array_equal(np.asarray(image), np.asarray(before))
    assert len(signed) - len(plain.data) < 20_000


@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_a_picture_that_was_changed_after_signing_is_found_out(signer, output_format):
    plain = encode(PIXELS, output_format, None)
    signed = bytearray(signer.sign(plain.data, plain.content_type))
    signed[-20] ^= 1
    manifest = verify(bytes(signed), plain.content_type)
    assert manifest is not None
    assert not manifest.valid
    assert any("dataHash.mismatch" in fault for fault in manifest.faults)


def test_a_picture_without_a_manifest_has_none():
    made = encode(PIXELS, "jpeg", None)
    assert verify(made.data, made.content_type) is None


def test_the_encoder_signs_what_it_writes(signer):
    encoder = Encoder(workers=2, signer=signer)
    made = asyncio.run(encoder.encode_all([PIXELS, PIXELS], "jpeg", [None, TOLD]))
    encoder.close()
    for image in made:
        manifest = verify(image.data, image.content_type)
        assert manifest is not None
        assert manifest.valid


def test_ed25519_works_too(tmp_path):
    signer = Signer(*authority(tmp_path, ed25519.Ed25519PrivateKey.generate()))
    signer.check()


def test_a_key_of_another_certificate_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    chain, _ = authority(tmp_path / "a")
    _, key = authority(tmp_path / "b")
    with pytest.raises(SigningError) as caught:
        Signer(chain, key).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff"])
def test_a_file_that_is_no_key_is_refused(tmp_path, content):
    chain, key = authority(tmp_path)
    key.write_bytes(content)
    with pytest.raises(SigningError, match="cannot be read"):
        Signer(chain, key)
    with pytest.raises(SigningError, match="No such file"):
        Signer(chain, tmp_path / "none.pem")


@pytest.mark.parametrize("variables", [{"SANA_C2PA_CERT"}, {"SANA_C2PA_KEY"}, {"SANA_C2PA_CERT", "SANA_C2PA_KEY"}])
def test_a_signer_that_cannot_sign_stops_the_start_with_one_line(tmp_path, variables):
    (tmp_path / "other").mkdir()
    chain, _ = authority(tmp_path)
    _, key = authority(tmp_path / "other")
    paths = {"SANA_C2PA_CERT": str(chain), "SANA_C2PA_KEY": str(key)}
    environ = {name: paths[name] for name in variables}
    environ |= {"SANA_STORAGE_URL": (tmp_path / "files").as_uri(), "SANA_JOBS_URL": f"sqlite://{tmp_path}/jobs/jobs.db"}
    with pytest.raises(SettingsError, match="SANA_C2PA_KEY") as caught:
        check(load_settings(environ))
    assert "\n" not in str(caught.value)
