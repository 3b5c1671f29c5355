from sidecar.config.document import Limits, ListenerTls, UpstreamTls
from tests.unit.config.conftest import MINIMAL, Complaining, Loading


def test_limits_are_read_in_bytes_and_seconds(loading: Loading) -> None:
    limits = loading(MINIMAL + "limits: {header: 4KiB, body: 1MiB, head_timeout: 3s, connections: 7}\n").limits
    assert (limits.header, limits.body, limits.head_timeout, limits.connections) == (4096, 1 << 20, 3.0, 7)


def test_every_limit_has_a_default(loading: Loading) -> None:
    assert loading(MINIMAL).limits == Limits()


def test_a_header_cannot_be_longer_than_the_whole_head(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + "limits: {header: 64KiB}\n")
    assert "limits" in line
    assert "is less than one request line or header may have" in line


def test_the_listener_s_certificate_is_read(loading: Loading) -> None:
    assert loading(MINIMAL + "tls: {certificate: /c.pem, key: /k.pem}\n").tls == ListenerTls(
        certificate="/c.pem", key="/k.pem"
    )
    assert loading(MINIMAL).tls is None


def test_an_upstream_s_authority_needs_https(problems: Complaining) -> None:
    text = MINIMAL.replace("http://127.0.0.1:8000", "{url: 'http://127.0.0.1:8000', tls: {ca: /ca.pem}}")
    (line,) = problems(text)
    assert "upstream.tls: needs an https:// URL" in line


def test_a_client_certificate_needs_its_key(problems: Complaining) -> None:
    text = MINIMAL.replace("http://127.0.0.1:8000", "{url: 'https://127.0.0.1:8000', tls: {certificate: /c.pem}}")
    (line,) = problems(text)
    assert "certificate and key go together" in line


def test_an_upstream_s_tls_is_read(loading: Loading) -> None:
    text = MINIMAL.replace("http://127.0.0.1:8000", "{url: 'https://127.0.0.1:8000', tls: {ca: /a, server_name: api}}")
    assert loading(text).upstream.tls == UpstreamTls(ca="/a", server_name="api")


def test_an_empty_authority_is_refused_and_does_not_let_every_client_in(problems: Complaining) -> None:
    text = MINIMAL + 'tls: {certificate: /c.pem, key: /k.pem, client_ca: "${CLIENT_CA}"}\n'
    (line,) = problems(text, environ={"CLIENT_CA": ""})
    assert line == "4:52: tls.client_ca: must not be empty: leave it out for none"
