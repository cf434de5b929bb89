"""Media are fetched from public addresses only, whatever a URL, a name server or a web server says."""

import asyncio
import gzip
import os
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from qvl.errors import InputError, MediaFetchError, MediaTooLargeError
from qvl.serve.errors import QueueFullError, RefusedError
from qvl.serve.media import fetching
from qvl.serve.media.addresses import is_public
from qvl.serve.media.fetching import Fetcher, parsed
from qvl.serve.media.held import Allowance, HeldFile
from qvl.serve.media.service import MediaRequest
from qvl.serve.settings import Access, Limits
from support.media import data_uri, encoded, http_server, photo, redirects, running_media, sends

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700::1111",
    "64:ff9b::808:808",
    "::ffff:8.8.8.8",
]
NOT_PUBLIC = """
    127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 169.254.169.254
    100.64.0.1 100.100.100.200 192.0.0.192 192.0.2.1 198.18.0.1 198.51.100.7 203.0.113.9 224.0.0.1 240.0.0.1
    255.255.255.255 168.63.129.16 192.88.99.1
    ::1 :: fe80::1 fe80::1%eth0 2606:4700::1111%eth0 fec0::1 fc00::1 fd00:ec2::254 ff02::1 2001:db8::1
    2001::1 100::1 3fff::1 4000::1 2002:7f00:1:: 2002:a9fe:a9fe:: 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe
    64:ff9b:1::7f00:1 5f00::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:0:127.0.0.1
    localhost 127.1 2130706433
"""


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def fetched(url, *, access=None, resolve=None, most=10_000, allowance=10**6, **limits):
    """The body of ``url``."""

    async def work():
        fetcher = Fetcher(access or Access(), replace(Limits(fetch_seconds=30.0), **limits), resolve)
        try:
            with HeldFile(most, Allowance(allowance)) as file:
                await fetcher.fetch(url, file)
                return os.pread(file.fileno, file.size, 0)
        finally:
            fetcher.close()

    return asyncio.run(work())


def names(**hosts):
    """A name server that knows these hosts; underscores stand for dots. Counts who asks."""

    async def resolve(host, port):
        resolve.asked.append(host)
        answer = hosts[host.replace(".", "_")]
        return answer.pop(0) if answer and isinstance(answer[0], list) else answer

    resolve.asked = []
    return resolve


LOCAL = Access(fetch_hosts=("127.0.0.1",))


# Addresses in URLs


THIS_MACHINE = """
    127.0.0.1 127.1 127.0.1 2130706433 017700000001 0177.0.0.1 0x7f000001 0x7f.1 0x7f.0.0.1 localhost
    localhost. LOCALHOST 127.0.0.1. 0 0.0.0.0 [::1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1]
    [0:0:0:0:0:ffff:a9fe:a9fe] [64:ff9b::127.0.0.1] [fe80::1] [fd00:ec2::254] 169.254.169.254 2852039166
    0xa9fea9fe
"""


@pytest.mark.parametrize("host", THIS_MACHINE.split())
def test_no_way_of_writing_it_leads_to_this_machine(host):
    with http_server({"/": sends(b"secret")}) as (port, asked):
        with pytest.raises(
            MediaFetchError, match=r"no public address that this server may fetch from|cannot be read"
        ):
            fetched(f"http://{host}:{port}/")
        assert asked == []


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://user:word@127.0.0.1/", RefusedError),
        ("http://example.com@127.0.0.1/", RefusedError),
        ("http://example.com:80@127.0.0.1/", RefusedError),
        ("http://127.0.0.1\\@example.com/", MediaFetchError),
        ("http://example.com\\@127.0.0.1/", MediaFetchError),
        ("http://127.0.0.1#@example.com/", MediaFetchError),
        ("http://127.0.0.1?@example.com/", MediaFetchError),
        ("http://127.0.0.1%2f@example.com/", RefusedError),
        ("http://[fe80::1%25lo]/", RefusedError),
        ("http://[fe80::1%lo]/", RefusedError),
        ("http://127.0.0.1%00.example.com/", RefusedError),
        ("http:///etc/passwd", MediaFetchError),
        ("http:127.0.0.1", MediaFetchError),
        ("http://", MediaFetchError),
        ("http://[::1", MediaFetchError),
        ("http://exa mple.com/", MediaFetchError),
        ("http://example.com/\r\nHost: other", MediaFetchError),
        ("http://ⓛocalhost/", MediaFetchError),
        ("http://127。0。0。1/", MediaFetchError),
        ("http://example.com:99999/", MediaFetchError),
        ("http://example.com:0/", MediaFetchError),
        ("http://127.0.0.1:22/", RefusedError),
        ("http://127.0.0.1:25/", RefusedError),
        ("http://example.com/" + "a" * 9000, MediaFetchError),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else value.__name__,
)
def test_urls_that_are_refused_as_they_stand(url, error):
    with pytest.raises(error):
        fetched(url, resolve=names(**{"127_0_0_1": ["127.0.0.1"]}))


def test_the_host_that_is_checked_is_the_host_of_the_url():
    assert fetching.host_of(parsed("http://Example.COM./x")) == "example.com"
    assert fetching.host_of(parsed("http://xn--bcher-kva.example/x")) == "xn--bcher-kva.example"
    assert fetching.host_of(parsed("http://[::FFFF:1.2.3.4]:81/")) == "::ffff:1.2.3.4"
    assert fetching.port_of(parsed("https://example.com/")) == 443


def test_one_private_address_among_public_ones_is_enough():
    with pytest.raises(MediaFetchError, match="no public address"):
        fetched("http://mixed.test/", resolve=names(mixed_test=["8.8.8.8", "10.0.0.1"]))


def test_unknown_names_and_private_ones_are_told_apart_by_nobody():
    async def unknown(host, port):
        raise socket.gaierror("Name or service not known")

    words = []
    for resolve in (unknown, names(hidden_test=["10.1.2.3"]), names(hidden_test=[])):
        with pytest.raises(MediaFetchError) as caught:
            fetched("http://hidden.test/", resolve=resolve)
        words.append(str(caught.value))
    assert len(set(words)) == 1


# Connections


def test_an_exempt_host_is_fetched_from():
    with http_server({"/a?b=c": sends(b"picture")}) as (port, asked):
        assert fetched(f"http://127.0.0.1:{port}/a?b=c#d", access=LOCAL) == b"picture"
        only = Access(fetch_hosts=(f"127.0.0.1:{port}",))
        assert fetched(f"http://127.0.0.1:{port}/a?b=c", access=only) == b"picture"
        assert asked == [f"127.0.0.1:{port}/a?b=c"] * 2
        other = Access(fetch_hosts=("127.0.0.1:1", "localhost"))
        with pytest.raises(MediaFetchError, match="no public address"):
            fetched(f"http://127.0.0.1:{port}/a?b=c", access=other)
        with pytest.raises(RefusedError, match="fetches no media"):
            fetched(f"http://127.0.0.1:{port}/a?b=c", access=replace(LOCAL, fetch=False))


def test_how_an_exempt_host_may_be_written():
    exempt = {
        "Files.Example.": "files.example",
        "bücher.example": "xn--bcher-kva.example",
        "a.example:80": "a.example:80",
    }
    exempt |= {"::1": "::1", "[::1]": "::1", "[::1]:8000": "[::1]:8000", "10.0.0.1:9": "10.0.0.1:9"}
    for written, meant in exempt.items():
        assert fetching.exemption(written) == meant
    for wrong in (
        "",
        "http://files.example",
        "files.example/",
        "me@files.example",
        "files.example:x",
        "[::1",
        ":80",
    ):
        with pytest.raises(InputError, match="is no host that media may be fetched from"):
            fetching.exemption(wrong)


def test_a_name_that_changes_its_address_is_connected_to_where_it_was_checked(monkeypatch):
    """DNS rebinding: the first answer is public (here 127.0.0.2 stands for that), the next is not."""
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.2")
    monkeypatch.setattr(socket, "getaddrinfo", no_other_resolver(socket.getaddrinfo))
    resolve = names(rebinding_test=[["127.0.0.2"], ["127.0.0.1"], ["127.0.0.1"]])
    with (
        http_server({"/": sends(b"public")}, "127.0.0.2") as (port, asked),
        http_server({"/": sends(b"secret")}, "127.0.0.1", port) as (_, stolen),
    ):
        assert fetched(f"http://rebinding.test:{port}/", resolve=resolve) == b"public"
        assert asked == [f"rebinding.test:{port}/"]
        with pytest.raises(MediaFetchError, match="no public address"):
            fetched(f"http://rebinding.test:{port}/", resolve=resolve)
        assert stolen == []
    assert resolve.asked == ["rebinding.test"] * 2


def no_other_resolver(real):
    def getaddrinfo(host, *arguments, **options):
        assert "test" not in str(host), "the name was looked up a second time"
        return real(host, *arguments, **options)

    return getaddrinfo


def test_the_next_address_where_one_takes_no_connection(monkeypatch):
    monkeypatch.setattr(fetching, "is_public", lambda address: address.startswith("127.0.0."))
    with http_server({"/": sends(b"here")}, "127.0.0.3") as (port, _):
        resolve = names(many_test=["127.0.0.2", "127.0.0.3", "127.0.0.4"])
        assert fetched(f"http://many.test:{port}/", resolve=resolve) == b"here"


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/secret", "http://169.254.169.254/latest", "//127.0.0.1:{port}/secret"]
)
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_checked_like_any_address(monkeypatch, target, status):
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.2")
    answers = {"/secret": sends(b"secret")}
    with http_server(answers, "127.0.0.2") as (port, _):
        answers["/"] = redirects(target.format(port=port), status)
        with http_server({"/secret": sends(b"secret")}, "127.0.0.1", port) as (_, stolen):
            with pytest.raises(MediaFetchError, match="no public address"):
                fetched(f"http://127.0.0.2:{port}/")
            assert stolen == []


def test_redirects_are_followed_so_far():
    answers = {f"/{n}": redirects(f"/{n - 1}") for n in range(1, 6)} | {"/0": sends(b"picture")}
    with http_server(answers) as (port, _):
        assert fetched(f"http://127.0.0.1:{port}/3", access=LOCAL) == b"picture"
        with pytest.raises(MediaFetchError, match="redirects more than 3 times"):
            fetched(f"http://127.0.0.1:{port}/4", access=LOCAL)
        with pytest.raises(MediaFetchError, match="redirects more than 0 times"):
            fetched(f"http://127.0.0.1:{port}/1", access=LOCAL, redirects=0)


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "data:text/plain,x",
        "http://u:p@127.0.0.1/",
        "http://[::1",
        "gopher:x",
    ],
)
def test_redirects_to_what_is_not_fetched(location):
    with http_server({"/": redirects(location)}) as (port, _):
        with pytest.raises((RefusedError, MediaFetchError)) as caught:
            fetched(f"http://127.0.0.1:{port}/", access=LOCAL)
        assert "127.0.0.1 could not be read" not in str(caught.value)


def test_no_way_from_https_to_http():
    with pytest.raises(RefusedError, match="from https to http"):
        fetching.redirected(parsed("https://example.com/a"), "http://example.com/a")
    assert (
        str(fetching.redirected(parsed("http://example.com/a"), "https://example.com/b"))
        == "https://example.com/b"
    )


def test_neither_proxies_nor_credentials_nor_cookies(monkeypatch, tmp_path):
    seen = []

    def cookie(handler):
        seen.append(dict(handler.headers))
        redirects("/", 302)(handler) if len(seen) == 1 else sends(b"x", Set_Cookie="a=b")(handler)

    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password word\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with http_server({"/": cookie}) as (port, _):
        assert fetched(f"http://127.0.0.1:{port}/", access=LOCAL) == b"x"
    for headers in seen:
        assert not {name.lower() for name in headers} & {
            "cookie",
            "authorization",
            "referer",
            "proxy-authorization",
        }


# Bodies


def test_status_codes():
    with http_server({"/": sends(b"", 404), "/no": sends(b"", 304), "/back": sends(b"", 302)}) as (port, _):
        for path, status in (("/", 404), ("/no", 304), ("/back", 302)):
            with pytest.raises(MediaFetchError, match=f"answered {status}"):
                fetched(f"http://127.0.0.1:{port}{path}", access=LOCAL)


def endless(handler):
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(bytes(2**16))


def dripping(handler):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def test_a_body_without_end():
    with (
        http_server({"/": endless}) as (port, _),
        pytest.raises(MediaTooLargeError, match="more than the 10,000"),
    ):
        fetched(f"http://127.0.0.1:{port}/", access=LOCAL)


def test_a_body_that_drips():
    with http_server({"/": dripping}) as (port, _):
        start = time.monotonic()
        with pytest.raises(MediaFetchError, match=r"within 0\.3 seconds"):
            fetched(f"http://127.0.0.1:{port}/", access=LOCAL, fetch_seconds=0.3)
        assert time.monotonic() - start < 4


def test_announced_lengths_are_believed_only_where_they_refuse():
    answers = {
        "/huge": sends(b"x", Content_Length="99999999999999"),
        "/absurd": sends(b"x", Content_Length="9" * 40),
        "/more": sends(b"x" * 20_000, Content_Length="5"),
        "/less": sends(b"x", Content_Length="5000"),
        "/not": sends(b"x", Content_Length="-5"),
    }
    with http_server(answers) as (port, _):
        with pytest.raises(MediaTooLargeError, match="more than the 10,000 bytes"):
            fetched(f"http://127.0.0.1:{port}/huge", access=LOCAL)
        assert fetched(f"http://127.0.0.1:{port}/more", access=LOCAL) == b"xxxxx"
        for path in ("/absurd", "/less", "/not"):
            with pytest.raises((MediaFetchError, MediaTooLargeError)):
                fetched(f"http://127.0.0.1:{port}{path}", access=LOCAL, fetch_seconds=1.0)


def test_nothing_is_decompressed():
    bomb = gzip.compress(bytes(10**7))
    answers = {"/": sends(bomb, Content_Encoding="gzip"), "/plain": sends(b"x", Content_Encoding="identity")}
    with http_server(answers) as (port, _):
        with pytest.raises(MediaFetchError, match="compressed it, though"):
            fetched(f"http://127.0.0.1:{port}/", access=LOCAL, most=10**6)
        assert fetched(f"http://127.0.0.1:{port}/plain", access=LOCAL) == b"x"


def test_all_downloads_together_are_bounded():
    with http_server({"/": endless}) as (port, _), pytest.raises(QueueFullError):
        fetched(f"http://127.0.0.1:{port}/", access=LOCAL, most=10**9, allowance=10**6 + 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\0\1\2",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200\r\n" + b"A: b\r\n" * 50_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
    ids=["nothing", "noise", "bad length", "endless headers", "bad chunk"],
)
def test_servers_that_do_not_speak_http(answer):
    with (
        raw_server(answer) as port,
        pytest.raises(MediaFetchError, match=r"127\.0\.0\.1 could not be read from"),
    ):
        fetched(f"http://127.0.0.1:{port}/", access=LOCAL)


@contextmanager
def raw_server(answer):
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection:
                connection.recv(2**16)
                try:
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_WR)
                    connection.recv(2**16)
                except OSError:
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for pictures.test, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout key -out cert -subj /CN=pictures.test"
    )
    try:
        made = subprocess.run(
            [*command.split(), "-addext", "subjectAltName=DNS:pictures.test"], cwd=folder, capture_output=True
        )
    except FileNotFoundError:
        pytest.skip("needs the program openssl, to make a certificate")
    assert made.returncode == 0, made.stderr
    return folder


def test_tls_speaks_to_the_name_at_the_checked_address(certificate, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    called = []
    context.sni_callback = lambda _, name, __: called.append(name)
    monkeypatch.setattr(fetching, "is_public", lambda address: address == "127.0.0.2")
    resolve = names(pictures_test=["127.0.0.2"], other_test=["127.0.0.2"])
    with tls_server(context, "127.0.0.2") as port:
        with pytest.raises(
            MediaFetchError, match=r"pictures\.test could not be read"
        ):  # nobody vouches for it
            fetched(f"https://pictures.test:{port}/", resolve=resolve)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "cert"))
        assert fetched(f"https://pictures.test:{port}/", resolve=resolve) == b"picture"
        with pytest.raises(
            MediaFetchError, match=r"other\.test could not be read"
        ):  # the certificate is another's
            fetched(f"https://other.test:{port}/", resolve=resolve)
    assert called == ["pictures.test", "pictures.test", "other.test"]


@contextmanager
def tls_server(context, address):
    with socket.create_server((address, 0)) as server:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                try:
                    with context.wrap_socket(connection, server_side=True) as secure:
                        secure.recv(2**16)
                        secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\npicture")
                        secure.recv(1)
                except OSError:
                    pass

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


def test_a_picture_by_url_is_the_picture_by_data_uri():
    data = encoded(photo())
    answers = {"/a.png": sends(data), "/page": sends(b"<html></html>")}
    with http_server(answers) as (port, _), running_media(access=LOCAL) as media:
        urls = [f"http://127.0.0.1:{port}/a.png", data_uri(data), f"http://127.0.0.1:{port}/page"]
        by_url, by_data, page = [MediaRequest(f"messages[{n}]", "image", url) for n, url in enumerate(urls)]
        prepared = media.prepare(by_url, by_data)
        assert prepared[0].media[0].digest == prepared[1].media[0].digest
        with pytest.raises(Exception, match=r"^messages\[2\]: a picture must be JPEG.* by its content"):
            media.measure(by_url, by_data, page)
