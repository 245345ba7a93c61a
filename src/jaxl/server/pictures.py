"""Pictures as clients get them, marked as machine-made, and pictures as clients send them.

The mark is IPTC's digital source type in an XMP packet (https://iptc.org/standards/photo-metadata/), which search
engines and picture sites read. A C2PA manifest (https://spec.c2pa.org) says the same and is signed with the operator's
key, so that nobody can change it, or the picture, unseen.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from jaxl import __version__
from jaxl.errors import InputError, OutputError
from jaxl.extras import install_command
from jaxl.png import png_bytes

Format = Literal["png", "jpeg", "webp"]

MEDIA_TYPES: Mapping[Format, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
DEFAULT_QUALITY = 90
# IPTC's words for a picture that a model has drawn, wholly or in part
DRAWN, COMPOSITE = (
    f"http://cv.iptc.org/newscodes/digitalsourcetype/{name}"
    for name in ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")
)
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">'
    "<Iptc4xmpExt:DigitalSourceType>{}</Iptc4xmpExt:DigitalSourceType>"
    '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


class Signer:
    """Signs pictures with C2PA manifests; any number of threads may.

    `certificate` is a PEM file with the operator's certificate and those above it, `key` one with its private key, not
    encrypted: elliptic (P-256, P-384, P-521), RSA or Ed25519. C2PA wants a certificate whose key usage allows
    signing and is one it knows, such as emailProtection.

    Raises InputError, naming `c2pa_cert` or `c2pa_key`, for files with which no picture can be signed, and where
    c2pa is not installed.
    """

    def __init__(self, certificate: Path, key: Path):
        try:
            import c2pa
        except ImportError:
            raise InputError("c2pa_cert", str(certificate), f"signing needs c2pa; {install_command('c2pa')}") from None
        chain, secret = _read("c2pa_cert", certificate), _read("c2pa_key", key)
        algorithm = _algorithm(chain, certificate, secret, key)
        self._c2pa = c2pa
        try:
            # without a picture inside the picture
            self._context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
            self._signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, secret, None))
            self._sign(png_bytes(Image.new("RGB", (8, 8)), None), "png", DRAWN)
        except c2pa.C2paError as error:
            raise InputError(
                "c2pa_cert",
                str(certificate),
                f"no picture can be signed with it ({_line(error)}); give one that C2PA allows, and its chain",
            ) from None

    def sign(self, data: bytes, format: Format, source_type: str) -> bytes:
        """Return the file of a picture with a manifest that has IPTC's `source_type`.

        Raises OutputError, as when the certificate has expired.
        """
        try:
            return self._sign(data, format, source_type)
        except self._c2pa.C2paError as error:
            raise OutputError(f"the picture could not be signed ({_line(error)})") from error

    def _sign(self, data: bytes, format: Format, source_type: str) -> bytes:
        signed = io.BytesIO()
        created = {"action": "c2pa.created", "digitalSourceType": source_type}
        manifest = {
            "claim_generator_info": [{"name": "jaxl", "version": __version__}],
            "assertions": [{"label": "c2pa.actions", "data": {"actions": [created]}}],
        }
        with self._c2pa.Builder(manifest, self._context) as builder:
            builder.sign(self._signer, MEDIA_TYPES[format], io.BytesIO(data), signed)
        return signed.getvalue()


def encode(
    picture: Image.Image,
    settings: Mapping[str, Any] | None,
    *,
    format: Format = "png",
    quality: int | None = None,
    composite: bool = False,
    mark: bool = True,
    signer: Signer | None = None,
) -> bytes:
    """Return an RGB picture as a file. A PNG has its settings too, if there are any, as `jaxl.png` writes them.

    quality: 0 to 100, of JPEG and WebP; None is 90.
    composite: a part of it is another picture. mark: whether it has the XMP packet that says that a machine made it.
    """
    source_type = COMPOSITE if composite else DRAWN
    xmp = XMP.format(source_type) if mark else None
    if format == "png":
        data = png_bytes(picture, settings, xmp)
    else:
        stream = io.BytesIO()
        packet = {} if xmp is None else {"xmp": xmp.encode()}
        picture.save(stream, format, quality=DEFAULT_QUALITY if quality is None else quality, **packet)
        data = stream.getvalue()
    return data if signer is None else signer.sign(data, format, source_type)


def decode(data: bytes | str, param: str, max_pixels: int) -> Image.Image:
    """Decode a picture that a client sent: the bytes of a PNG, JPEG or WebP file, those in base64, or a data URL.

    The size is taken from the header, before a pixel is decoded. Raises InputError, naming `param`. URLs of other kinds
    are refused: a server that fetches what strangers name reaches what they cannot.
    """
    if isinstance(data, str):
        data = from_base64(data, param)
    shown = f"{len(data)} bytes"
    large = InputError(param, shown, f"the picture has too many pixels; scale it down to at most {max_pixels} in all")
    try:
        image = Image.open(io.BytesIO(data), formats=[name.upper() for name in MEDIA_TYPES])
        if image.width * image.height > max_pixels:
            raise large
        image.load()
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise large from None
    except UnidentifiedImageError:
        raise InputError(param, shown, "not a PNG, JPEG or WebP picture, or a damaged one; send one of these") from None
    except Exception:  # decoders raise all kinds of errors at damaged files
        raise InputError(param, shown, "the picture is damaged or cut short; send it whole") from None
    return image


def from_base64(text: str, param: str) -> bytes:
    """Return the bytes of a file in base64, or in a data URL. Raises InputError, naming `param`."""
    start = text[:100]
    if start.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise InputError(param, start, "a data URL of a picture begins with data:image/png;base64,")
    elif "://" in start:
        raise InputError(param, start, "URLs are not fetched; send the picture itself, in base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(param, f"{len(text)} characters", "not base64; encode the picture's file in base64") from None


def _read(argument: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(argument, str(path), f"{error.strerror}; give a PEM file") from None


def _algorithm(chain: bytes, certificate: Path, secret: bytes, key: Path) -> str:
    """Return C2PA's name for signatures with a key, which must be the certificate's. Raises InputError."""
    from cryptography import x509  # comes with c2pa
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        public = x509.load_pem_x509_certificates(chain)[0].public_key()
    except ValueError:
        raise InputError("c2pa_cert", str(certificate), "no certificate in it; give a PEM file") from None
    remedy = "give the certificate's private key, elliptic, RSA or Ed25519, as a PEM file that is not encrypted"
    try:
        private = load_pem_private_key(secret, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise InputError("c2pa_key", str(key), f"no private key that can be read; {remedy}") from None
    if private.public_key() != public:
        raise InputError("c2pa_key", str(key), f"not the key of {certificate}; {remedy}")
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.key_size in (256, 384, 521):
        return {256: "es256", 384: "es384", 521: "es512"}[private.curve.key_size]
    if isinstance(private, rsa.RSAPrivateKey):
        return "ps256"
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return "ed25519"
    raise InputError("c2pa_key", str(key), f"of a kind that C2PA does not allow; {remedy}")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
