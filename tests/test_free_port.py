"""A port for a server that is created now and started later."""

import socket
from pathlib import Path

import pytest

from foedus import loopback
from foedus.errors import FoedusError


def test_no_program_that_asks_for_any_port_is_given_one_of_ours() -> None:
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert loopback.PORTS.stop <= first


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", loopback.free_port())) as listener:
        taken = listener.getsockname()[1]
        monkeypatch.setattr(loopback, "PORTS", range(taken, taken + 1))
        with pytest.raises(FoedusError, match="none of the ports"):
            loopback.free_port()
    assert loopback.free_port() == taken
