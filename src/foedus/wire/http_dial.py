"""How a client reaches a server: straight or through a proxy's CONNECT, then TLS; and what to do where that fails.
Addresses and the environment's proxy settings come in."""

from __future__ import annotations

import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import h11

from foedus.errors import WireError
from foedus.wire.certificate import pinned_context
from foedus.wire.http_connection import MOST_HEAD, Connection

CONNECT = 10.0
_PROXY_ACCOUNT = 407
_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (
        ssl.SSLCertVerificationError,
        "the certificate is not the one in the token, nor vouched for by an authority trusted here: "
        "somebody stands between, or the server has a new one and its owner a new token for you",
    ),
    (ssl.SSLError, "no TLS server of ours answers there: check address, port and https://"),
    (ConnectionRefusedError, "nothing listens there: start the server, or check address and port"),
    (socket.gaierror, "this name is unknown here: check the address and the DNS"),
    (TimeoutError, "no answer in time: check the network, the firewall and HTTPS_PROXY"),
    (h11.LocalProtocolError, "HTTP forbids this method, path or header: mend the call"),
    (Exception, "the connection was lost: try again, or look into the server's log"),
)

Address = tuple[str, int]
tls_context = lru_cache(maxsize=8)(pinned_context)  # reading the system's authorities takes tens of milliseconds


@contextmanager
def staged(url: str, stage: str) -> Iterator[None]:
    """Turns what the network throws into a WireError with URL, stage and remedy."""
    try:
        yield
    except (OSError, h11.ProtocolError) as error:
        remedy = next(remedy for kind, remedy in _REMEDIES if isinstance(error, kind))
        raise WireError(f"{url}, {stage}: {str(error) or type(error).__name__}; {remedy}") from error


def dial(url: str, address: Address, tls: ssl.SSLContext | None) -> socket.socket:
    """A socket to `address`, TLS not yet shaken hands on; through HTTPS_PROXY where it holds. WireError."""
    proxy = _proxy(url, *address) if tls else None
    with staged(url, "connect"):
        sock = _through(url, proxy, address) if proxy else socket.create_connection(address, CONNECT)
        try:
            return tls.wrap_socket(sock, server_hostname=address[0], do_handshake_on_connect=False) if tls else sock
        except BaseException:
            sock.close()
            raise


def _proxy(url: str, host: str, port: int) -> SplitResult | None:
    if _loopback(host) or proxy_bypass(f"{host}:{port}") or not (setting := getproxies().get("https")):
        return None
    proxy = urlsplit(setting if "://" in setting else f"http://{setting}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise WireError(f"{url}, connect: cannot use the proxy of HTTPS_PROXY; write it as http://host:port")
    return proxy


def _loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _through(url: str, proxy: SplitResult, address: Address) -> socket.socket:
    name = f"proxy {proxy.hostname}:{proxy.port or 80}"
    with staged(url, name):
        sock = socket.create_connection((proxy.hostname, proxy.port or 80), CONNECT)
        try:
            if (status := _tunnel(sock, proxy, *address)) in range(200, 300):
                return sock
        except BaseException:
            sock.close()
            raise
    sock.close()
    account = "put name and password into HTTPS_PROXY" if status == _PROXY_ACCOUNT else "check HTTPS_PROXY and NO_PROXY"
    raise WireError(f"{url}, {name}: it answered CONNECT with {status}; {account}")


def _tunnel(sock: socket.socket, proxy: SplitResult, host: str, port: int) -> int:
    """The status of the proxy's answer to CONNECT."""
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("host", target)]
    if proxy.username:
        account = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers.append(("proxy-authorization", f"Basic {b64encode(account.encode()).decode()}"))
    connection, parser = Connection(sock, "proxy", CONNECT), h11.Connection(h11.CLIENT, MOST_HEAD)
    connection.send(parser.send(h11.Request(method="CONNECT", target=target, headers=headers)) or b"")
    parser.send(h11.EndOfMessage())
    return connection.response(parser, CONNECT).status_code
