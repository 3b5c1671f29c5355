"""A certificate authority for tests, by openssl."""

import ssl
import subprocess
from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """Issues certificates for `localhost`, into `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "ca.crt"
        self._key = folder / "ca.key"
        # Python 3.13 refuses an authority that does not say so.
        named = ("-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign")
        _openssl("req", "-x509", *_KEY, *named, "-keyout", self._key, "-out", self.certificate)

    def issue(self, name: str) -> tuple[Path, Path]:
        """Files of a certificate and its key; `name` is the common name."""
        certificate, key = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        names = ("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost")
        names += ("-addext", "basicConstraints=critical,CA:FALSE")
        signed = ("-CA", self.certificate, "-CAkey", self._key)
        _openssl("req", "-x509", *_KEY, *names, *signed, "-keyout", key, "-out", certificate)
        return certificate, key

    def trusting(self) -> ssl.SSLContext:
        """A client's context that trusts this authority only."""
        return ssl.create_default_context(cafile=self.certificate)


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
