"""Binding of the data listener: both families, several addresses, and all or none of them."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from sidecar.config.fields import Address
from sidecar.http.accepting import BindError, bound
from tests.harness.ports import free_port
from tests.upstreams.scripted import answering, plain
from tests.wire.proxy.conftest import Bench, SetUp
from tests.wire.proxy.wire import RawClient, get

ANY = "0.0.0.0"  # noqa: S104
BOTH = pytest.mark.parametrize("few_files", [False, True], ids=["the loop accepts", "counted at once"])


def clients(bench: Bench) -> list[str]:
    return [record.decision.client_address for record in bench.records.finished_ones if record.decision is not None]


async def answered(bench: Bench, address: Address) -> bool:
    client = await RawClient.connect(address)
    try:
        return (await client.ask(get())).status == 200
    finally:
        await client.close()


@BOTH
async def test_any_ipv6_address_is_any_ipv4_address_too_and_each_client_has_its_own(
    set_up: SetUp, few_files: bool
) -> None:
    bench = await set_up(answering(plain()), at=[Address(host="::")], listener={"few_files": few_files})
    [address] = bench.server.addresses
    assert str(address).startswith("[::]:")
    assert await answered(bench, Address(host="127.0.0.1", port=address.port))
    assert await answered(bench, Address(host="::1", port=address.port))
    assert clients(bench) == ["127.0.0.1", "::1"]


@BOTH
async def test_a_list_is_served_at_each_of_its_addresses(set_up: SetUp, few_files: bool, tmp_path: Path) -> None:
    path = Address(path=str(tmp_path / "in.sock"))
    addresses = [Address(host="127.0.0.1"), Address(host="::1"), path]
    bench = await set_up(answering(plain()), at=addresses, listener={"few_files": few_files})
    first, second, third = bench.server.addresses
    assert (first.host, second.host, third) == ("127.0.0.1", "::1", path)
    assert [await answered(bench, address) for address in (first, second, third)] == [True] * 3
    assert clients(bench) == ["127.0.0.1", "::1", ""]


@BOTH
async def test_stopping_ends_every_address(set_up: SetUp, few_files: bool) -> None:
    addresses = [Address(host="::"), Address(host="127.0.0.1")]
    bench = await set_up(answering(plain()), at=addresses, listener={"few_files": few_files})
    any_address, other = bench.server.addresses
    await bench.server.stop(grace_seconds=0)
    for host, port in (("127.0.0.1", any_address.port), ("::1", any_address.port), ("127.0.0.1", other.port)):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, port)


@BOTH
async def test_an_address_in_use_is_named_and_the_others_are_released(set_up: SetUp, few_files: bool) -> None:
    options = {"few_files": few_files}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        free, other = free_port(), taken.getsockname()[1]
        addresses = [Address(host="127.0.0.1", port=port) for port in (free, other)]
        with pytest.raises(BindError, match=rf"cannot listen on 127\.0\.0\.1:{other}: Address already in use"):
            await set_up(answering(plain()), at=addresses, listener=options)
    await set_up(answering(plain()), at=addresses, listener=options)


def families(*addresses: Address) -> list[tuple[int, str]]:
    sockets, _ = bound(addresses, 1)
    found = [(each.family, each.getsockname()[0]) for each in sockets]
    for each in sockets:
        each.close()
    return found


@pytest.mark.parametrize("host", ["127.0.0.1", ANY])
def test_any_ipv6_address_leaves_ipv4_to_an_ipv4_address_of_the_same_port(host: str) -> None:
    port = free_port()
    six, four = (socket.AF_INET6, "::"), (socket.AF_INET, host)
    assert families(Address(host="::", port=port), Address(host=host, port=port)) == [six, four]
    assert families(Address(host=host, port=port), Address(host="::", port=port)) == [four, six]
    assert families(Address(host="::", port=port), Address(host=host)) == [six, (socket.AF_INET, ANY), four]


def test_a_socket_that_another_process_left_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "in.sock"
    for _ in range(2):
        assert families(Address(path=str(path))) == [(socket.AF_UNIX, "/")]
    os.remove(path)
    path.write_text("a file")
    with pytest.raises(BindError, match="Address already in use"):
        bound([Address(path=str(path))], 1)
    assert path.read_text() == "a file"


def test_a_socket_in_use_is_not_taken_over(tmp_path: Path) -> None:
    address = Address(path=str(tmp_path / "in.sock"))
    [listening], _ = bound([address], 1)
    with listening, socket.socket(socket.AF_UNIX) as client:
        with pytest.raises(BindError, match="Address already in use"):
            bound([address], 1)
        client.connect(address.path)


def test_a_name_has_one_port_at_all_of_its_addresses() -> None:
    sockets, [address] = bound([Address(host="localhost")], 1)
    assert {each.getsockname()[1] for each in sockets} == {address.port}
    for each in sockets:
        each.close()
