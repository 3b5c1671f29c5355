from sidecar.config.document import DecisionSettings
from sidecar.config.fields import Address
from tests.unit.config.conftest import MINIMAL, Complaining, Loading

TRUSTED = MINIMAL + "trusted_proxies: [127.0.0.1]\n"


def test_without_the_option_there_is_no_forward_auth_listener(loading: Loading) -> None:
    assert loading(MINIMAL).decision is None


def test_an_address_alone_is_every_dialect(loading: Loading) -> None:
    assert loading(TRUSTED + "decision: 127.0.0.1:8081\n").decision == DecisionSettings(
        listen=(Address(host="127.0.0.1", port=8081),), dialects=("nginx", "caddy", "traefik", "envoy")
    )


def test_the_dialects_can_be_named(loading: Loading) -> None:
    decision = loading(TRUSTED + "decision: {listen: '[::1]:8081', dialects: [envoy]}\n").decision
    assert decision == DecisionSettings(listen=(Address(host="::1", port=8081),), dialects=("envoy",))


def test_an_unknown_dialect_is_named(problems: Complaining) -> None:
    (line,) = problems(TRUSTED + "decision: {listen: 127.0.0.1:8081, dialects: [ngnix]}\n")
    assert "decision.dialects[0]" in line
    assert "nginx" in line


def test_forward_auth_without_a_trusted_proxy_is_an_error(problems: Complaining) -> None:
    (line,) = problems(MINIMAL + "decision: 127.0.0.1:8081\n")
    assert line == "4:11: decision: answers trusted proxies only: name the one in front in trusted_proxies"


def test_the_peer_of_a_unix_socket_could_not_be_trusted(problems: Complaining) -> None:
    (line,) = problems(TRUSTED + "decision: unix:/run/decision.sock\n")
    assert "decision: must be host:port" in line


def test_it_has_an_address_of_its_own(problems: Complaining) -> None:
    (line,) = problems(TRUSTED.replace("127.0.0.1:0", "127.0.0.1:8081") + "decision: {listen: 127.0.0.1:8081}\n")
    assert "is the address of listen already" in line
