import pytest

from sidecar.config.build.config import Config
from sidecar.config.document import Limits, ListenerTls, UpstreamTls
from sidecar.config.fields import Address
from sidecar.config.reload import without_restart
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
    assert line == "4:52: tls.client_ca: must not be empty: leave it out for none (the value is that of CLIENT_CA)"


LISTENERS = ("listen", "ops", "admin", "decision", "admin.listen", "decision.listen")


def written(option: str, value: str) -> str:
    """MINIMAL with the option of a listener."""
    rest = MINIMAL.replace("listen: 127.0.0.1:0\n", "") if option == "listen" else MINIMAL
    section, _, key = option.partition(".")
    line = f"{section}: {{{key}: {value}}}\n" if key else f"{section}: {value}\n"
    return f"{rest}trusted_proxies: ['::1']\n{line}"


def addresses(config: Config, option: str) -> tuple[Address, ...] | None:
    match option.partition(".")[0]:
        case "listen":
            return config.listen
        case "ops":
            return config.ops
        case "admin":
            return config.admin.listen if config.admin else None
        case _:
            return config.decision.listen if config.decision else None


@pytest.mark.parametrize("option", LISTENERS)
def test_every_listener_takes_one_address_or_a_list(loading: Loading, option: str) -> None:
    environ = {"SIDECAR_ADMIN_TOKEN": "0123456789abcdef0123"}
    one, other = Address(host="::1", port=81), Address(host="127.0.0.1", port=82)
    assert addresses(loading(written(option, '"[::1]:81"'), environ=environ), option) == (one,)
    assert addresses(loading(written(option, '["[::1]:81", "127.0.0.1:82"]'), environ=environ), option) == (one, other)


@pytest.mark.parametrize("option", ["listen", "ops", "admin", "admin.listen"])
def test_a_list_holds_unix_sockets_too(loading: Loading, option: str) -> None:
    config = loading(written(option, '["h:1", "unix:/run/in.sock"]'), environ={"SIDECAR_ADMIN_TOKEN": "0" * 20})
    assert addresses(config, option) == (Address(host="h", port=1), Address(path="/run/in.sock"))


@pytest.mark.parametrize("option", LISTENERS)
def test_a_wrong_address_of_a_list_is_named_by_its_place(problems: Complaining, option: str) -> None:
    (line,) = problems(written(option, '["h:1", "nope"]'))
    assert f"{option}[1]: must be host:port, [ipv6]:port or unix:/path" in line


@pytest.mark.parametrize("option", LISTENERS)
def test_a_list_without_an_address_is_refused(problems: Complaining, option: str) -> None:
    (line,) = problems(written(option, "[]"))
    assert f"{option}: must not be empty" in line


@pytest.mark.parametrize("option", LISTENERS)
def test_an_address_occurs_only_once_in_a_list(problems: Complaining, option: str) -> None:
    (line,) = problems(written(option, '["h:1", "g:1", "h:1"]'))
    assert f"{option}[2]: is in the list already" in line


def test_no_two_listeners_share_an_address_of_a_list(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + 'ops: ["h:1", "h:2"]\nadmin: {listen: ["h:3", "h:2"]}\n')
    assert "admin.listen[1]: is the address of ops already" in line


def test_forward_auth_has_no_unix_socket_in_a_list_either(problems: Complaining) -> None:
    (line,) = problems(written("decision.listen", '["h:1", "unix:/run/x.sock"]'))
    assert "decision.listen[1]: must be host:port" in line


def test_several_addresses_in_one_text_are_a_mistake_that_is_explained(problems: Complaining) -> None:
    (line,) = problems(written("listen", '"h:1,[::1]:1"'))
    assert "listen: must be host:port, [ipv6]:port or unix:/path; write several as a list: [a, b]" in line


def test_a_proxy_header_is_accepted_only_from_trusted_proxies(loading: Loading, problems: Complaining) -> None:
    assert not loading(MINIMAL).proxy_protocol
    assert loading(MINIMAL + "proxy_protocol: true\ntrusted_proxies: [10.0.0.0/8]\n").proxy_protocol
    (line,) = problems(MINIMAL + "proxy_protocol: true\n")
    assert line == ("4:17: proxy_protocol: is for trusted proxies only: name the one in front in trusted_proxies")
    unix = MINIMAL.replace("127.0.0.1:0", "unix:/run/in.sock")
    assert loading(unix + "proxy_protocol: true\n").proxy_protocol


@pytest.mark.parametrize("change", [("127.0.0.1:0", "[127.0.0.1:0, 'h:1']"), ("false", "true")])
def test_addresses_and_the_proxy_protocol_wait_for_a_restart(loading: Loading, change: tuple[str, str]) -> None:
    text = MINIMAL + "proxy_protocol: false\ntrusted_proxies: [10.0.0.0/8]\n"
    running, wanted = loading(text), loading(text.replace(*change))
    config, kept = without_restart(running, wanted)
    assert kept == (("listen",) if "h:1" in change[1] else ("proxy_protocol",))
    assert (config.listen, config.proxy_protocol) == (running.listen, running.proxy_protocol)
