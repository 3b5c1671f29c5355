"""What the probes read from certificates, secrets and file systems."""

import ssl
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from sidecar.doctor.facts import CertificateFacts, DiskFacts, Unknown
from sidecar.doctor.findings import span
from sidecar.doctor.probes.host import bits, certificate_of, disk_of, own_addresses, validity_of
from tests.harness.tools import needed


@pytest.mark.parametrize("days", [5, 20_000])  # within 2049, whose years have two digits, and past it
def test_the_end_of_a_certificate_is_what_openssl_says(tmp_path: Path, days: int) -> None:
    path = tmp_path / "tls.crt"
    made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"]
    openssl = needed("openssl")
    subprocess.run(
        [openssl, *made, "-days", str(days), "-keyout", tmp_path / "k", "-out", path], check=True, capture_output=True
    )
    told = subprocess.run([openssl, "x509", "-in", path, "-noout", "-enddate"], capture_output=True, text=True).stdout
    found = certificate_of(str(path))
    assert isinstance(found, CertificateFacts)
    assert found.ends_at == ssl.cert_time_to_seconds(told.strip().removeprefix("notAfter="))
    assert found.ends_at - found.begins_at == pytest.approx(days * 86_400, abs=1)


@pytest.mark.parametrize("text", ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_file_that_is_not_a_certificate_is_reported(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tls.crt"
    path.write_text(text)
    assert certificate_of(str(path)) == Unknown(reason=f"{path} contains no readable certificate")
    assert certificate_of(str(tmp_path / "no")) == Unknown(reason=f"{tmp_path / 'no'}: No such file or directory")


def test_cut_off_der_is_refused_at_every_length(tmp_path: Path) -> None:
    results = Counter[bool]()
    der = bytes.fromhex("3023302130") + bytes(40)
    for length in range(len(der)):
        try:
            validity_of(der[:length])
        except ValueError:
            results[False] += 1
    assert results[False] == len(der)


def test_a_secret_weighs_what_its_length_and_variety_allow() -> None:
    assert bits("a" * 40) == 0
    assert bits("") == 0
    assert bits("ab" * 10) == 20
    assert bits("0123456789abcdef") == 64


def test_durations_are_shown_in_a_suitable_unit() -> None:
    told = [span(seconds) for seconds in (0.00004, 0.0015, 8, -90, 300, 7200, 86_400 * 14)]
    assert told == ["40µs", "1.5ms", "8s", "90s", "5m", "2h", "14d"]


def test_the_type_of_a_file_system_is_that_of_the_mount(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    number = f"{device >> 8 & 0xFFF}:{device & 0xFF | device >> 12 & 0xFFF00}"
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 0:99 / /proc rw - proc proc rw\n23 1 {number} / /data rw shared:1 - nfs4 host:/x rw\n")
    found = disk_of(str(tmp_path), mounts=str(mounts))
    assert isinstance(found, DiskFacts)
    assert found.kind == "nfs4"
    assert 0 <= found.free <= found.total


def test_the_addresses_of_this_host_are_those_of_its_interfaces() -> None:
    told = subprocess.run([needed("ip"), "-o", "addr"], capture_output=True, text=True).stdout
    addresses = own_addresses()
    assert all(f" {address}/" in told for address in addresses)
    assert not any(address.startswith(("127.", "fe80:", "::1")) for address in addresses)
