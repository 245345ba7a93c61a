"""Pictures as clients get them and send them: what they say of themselves, signatures, and what is refused."""

import base64
import datetime
import io
import json
import re
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import jaxl
from jaxl.errors import InputError, OutputError
from jaxl.extras import install_command
from jaxl.server.pictures import COMPOSITE, DRAWN, MEDIA_TYPES, Format, Signer, decode, encode

SIDE = 48
IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)).resize((SIDE, SIDE))
SETTINGS = {
    "prompt": "a red apple",
    "seed": 1,
    "steps": 25,
    "guidance_scale": 5.0,
    "width": SIDE,
    "height": SIDE,
    "scheduler": "euler",
}
formats = pytest.mark.parametrize("format", MEDIA_TYPES)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@formats
@pytest.mark.parametrize(
    ("composite", "name"), [(False, "trainedAlgorithmicMedia"), (True, "compositeWithTrainedAlgorithmicMedia")]
)
def test_a_picture_says_that_a_machine_made_it(format: Format, composite: bool, name: str) -> None:
    image = opened(encode(IMAGE, SETTINGS, format=format, composite=composite))
    assert image.format == format.upper()
    assert np.abs(np.asarray(image).astype(int) - np.asarray(IMAGE)).mean() < (1 if format == "png" else 12)
    packet = ElementTree.fromstring(image.info["xmp"])
    assert [each.text for each in packet.iter("{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")] == [
        f"http://cv.iptc.org/newscodes/digitalsourcetype/{name}"
    ]


@formats
def test_no_mark(format: Format) -> None:
    data = encode(IMAGE, SETTINGS, format=format, mark=False)
    assert b"DigitalSourceType" not in data
    assert "xmp" not in opened(data).info


def test_a_png_has_its_settings() -> None:
    info = opened(encode(IMAGE, SETTINGS)).info
    assert json.loads(info["jaxl"]) == SETTINGS
    assert info["parameters"].startswith("a red apple\nSteps: 25, ")
    assert "jaxl" not in opened(encode(IMAGE, None)).info


@pytest.mark.parametrize("format", ["jpeg", "webp"])
def test_quality(format: Format) -> None:
    sizes = [len(encode(IMAGE, None, format=format, quality=quality)) for quality in (0, 50, None, 100)]
    assert sizes == sorted(set(sizes))


@formats
def test_what_is_sent_is_decoded(format: Format) -> None:
    data = encode(IMAGE, SETTINGS, format=format)
    text = base64.b64encode(data).decode()
    lines = "\n".join(text[i : i + 76] for i in range(0, len(text), 76))
    for sent in (data, text, lines, f"data:{MEDIA_TYPES[format]};base64,{text}"):
        np.testing.assert_array_equal(np.asarray(decode(sent, "image", SIDE * SIDE)), np.asarray(opened(data)))


def _bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _long_text() -> bytes:
    """A PNG with a compressed text that is far longer than the file."""
    info = PngInfo()
    info.add_text("comment", "a" * 2**27, zip=True)
    stream = io.BytesIO()
    IMAGE.save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def _gif() -> bytes:
    stream = io.BytesIO()
    IMAGE.save(stream, "GIF")
    return stream.getvalue()


PNG, JPEG = encode(IMAGE, SETTINGS), encode(IMAGE, None, format="jpeg")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"", "not a PNG, JPEG or WebP"),
        ("", "not a PNG, JPEG or WebP"),
        (b"hello", "not a PNG, JPEG or WebP"),
        (_gif(), "not a PNG, JPEG or WebP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG or WebP"),
        (PNG[: len(PNG) // 2], "damaged or cut short"),
        (JPEG[: len(JPEG) // 2], "damaged or cut short"),
        (encode(IMAGE, None, format="webp")[:-400], "damaged"),
        (_bomb(100_000, 100_000), "too many pixels; scale it down to at most 2304 in all"),
        (_bomb(10_000, 9_000), "too many pixels; scale it down to at most 2304 in all"),
        (_bomb(SIDE + 1, SIDE), "too many pixels; scale it down to at most 2304 in all"),
        (_bomb(0, 5), "damaged|not a PNG"),
        (_long_text(), "damaged|not a PNG"),
        ("not base64!", "not base64"),
        ("aGVsbG8", "not base64"),
        ("château", "not base64"),
        ("data:image/png,hello", "begins with data:image/png;base64,"),
        ("data:image/png;base64", "begins with data:image/png;base64,"),
        ("http://localhost/a.png", "URLs are not fetched"),
        ("file:///etc/passwd", "URLs are not fetched"),
    ],
)
def test_what_is_refused(sent: bytes | str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        decode(sent, "init_images[0]", SIDE * SIDE)
    assert caught.value.argument == "init_images[0]"
    assert str(caught.value).startswith("init_images[0]=")
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def make_certificate(
    key: Key, issuer: Key | None = None, *, ended: bool = False, usage: bool = True
) -> x509.Certificate:
    """A certificate for signing, from an authority, or the authority's own."""
    now = datetime.datetime.now(datetime.UTC)
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "an operator" if issuer else "an authority")])
    above = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "an authority")])
    is_authority = issuer is None
    issuer = issuer or key
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(above)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=-1 if ended else 9))
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(not is_authority, False, False, False, False, is_authority, is_authority, False, False), True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
    )
    if usage:
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    return builder.sign(issuer, hashes.SHA256())


AUTHORITY = ec.generate_private_key(ec.SECP256R1())


def write_files(folder: Path, key: Key, **options: Any) -> tuple[Path, Path]:
    """The chain of certificates and the key, as files."""
    certificate, secret = folder / "chain.pem", folder / "key.pem"
    chain = (make_certificate(key, AUTHORITY, **options), make_certificate(AUTHORITY, usage=False))
    certificate.write_bytes(b"".join(each.public_bytes(serialization.Encoding.PEM) for each in chain))
    secret.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return certificate, secret


def read_manifest(data: bytes, format: Format) -> dict[str, Any]:
    with c2pa.Reader(MEDIA_TYPES[format], io.BytesIO(data)) as reader:
        return json.loads(reader.json())


@formats
@pytest.mark.parametrize(("composite", "source_type"), [(False, DRAWN), (True, COMPOSITE)])
def test_a_signed_picture(tmp_path: Path, format: Format, composite: bool, source_type: str) -> None:
    signer = Signer(*write_files(tmp_path, ec.generate_private_key(ec.SECP256R1())))
    data = encode(IMAGE, SETTINGS, format=format, composite=composite, signer=signer)
    store = read_manifest(data, format)
    assert store["validation_state"] == "Valid"
    assert [each["code"] for each in store["validation_status"]] == ["signingCredential.untrusted"]
    (manifest,) = store["manifests"].values()
    (generator,) = manifest["claim_generator_info"]
    assert (generator["name"], generator["version"]) == ("jaxl", jaxl.__version__)
    (assertion,) = manifest["assertions"]
    assert assertion["data"]["actions"] == [{"action": "c2pa.created", "digitalSourceType": source_type}]
    assert manifest["signature_info"]["issuer"] == "an operator"
    assert "thumbnail" not in manifest
    image = opened(data)
    assert b"DigitalSourceType" in image.info["xmp"]
    if format == "png":
        assert json.loads(image.info["jaxl"]) == SETTINGS
        tampered = data.replace(b"a red apple", b"a red ample")
        assert read_manifest(tampered, format)["validation_state"] == "Invalid"


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (ec.generate_private_key(ec.SECP384R1()), "Es384"),
        (ec.generate_private_key(ec.SECP521R1()), "Es512"),
        (rsa.generate_private_key(65537, 2048), "Ps256"),
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519"),
    ],
)
def test_the_algorithm_is_the_keys(tmp_path: Path, key: Key, algorithm: str) -> None:
    store = read_manifest(encode(IMAGE, None, signer=Signer(*write_files(tmp_path, key))), "png")
    (manifest,) = store["manifests"].values()
    assert manifest["signature_info"]["alg"] == algorithm


def test_a_signature_that_fails_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signer = Signer(*write_files(tmp_path, ec.generate_private_key(ec.SECP256R1())))

    def fail(*_: Any) -> None:
        raise c2pa.C2paError("Signature: the certificate\nhas expired")

    monkeypatch.setattr(c2pa.Builder, "sign", fail)
    with pytest.raises(OutputError, match=r"could not be signed \(Signature: the certificate has expired"):
        encode(IMAGE, None, signer=signer)


@pytest.mark.parametrize("options", [{"ended": True}, {"usage": False}])
def test_a_certificate_that_c2pa_does_not_allow(tmp_path: Path, options: dict[str, bool]) -> None:
    files = write_files(tmp_path, ec.generate_private_key(ec.SECP256R1()), **options)
    with pytest.raises(InputError, match=r"^c2pa_cert='.*chain\.pem': no picture can be signed with it"):
        Signer(*files)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    certificate, key = write_files(tmp_path, ec.generate_private_key(ec.SECP256R1()))
    other = tmp_path / "other.pem"
    with pytest.raises(InputError, match=r"^c2pa_key='.*other\.pem': No such file"):
        Signer(certificate, other)
    other.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"^c2pa_key='.*other\.pem': no private key that can be read"):
        Signer(certificate, other)
    with pytest.raises(InputError, match=r"^c2pa_cert='.*other\.pem': no certificate in it"):
        Signer(other, key)
    secret = ec.generate_private_key(ec.SECP256R1())
    encryption = serialization.BestAvailableEncryption(b"a password")
    for coding, message in ((serialization.NoEncryption(), "not the key of"), (encryption, "not encrypted")):
        other.write_bytes(secret.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, coding))
        with pytest.raises(InputError, match=message):
            Signer(certificate, other)
    weak = tmp_path / "weak"
    weak.mkdir()
    with pytest.raises(InputError, match="of a kind that C2PA does not allow"):
        Signer(*write_files(weak, ec.generate_private_key(ec.SECP192R1())))


def test_without_c2pa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(InputError, match=re.escape(f"signing needs c2pa; {install_command('c2pa')}")):
        Signer(*write_files(tmp_path, ec.generate_private_key(ec.SECP256R1())))
