"""Who may ask a server: keys, the Host header, what counts as a client, and addresses that need a key."""

import base64
import json

import pytest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from qvl.errors import InputError
from qvl.serve.access import Gate
from qvl.serve.keys import check_binding, read_keys
from support.serving import client, fake_backend, serve_settings

KEY, OTHER = "a-key-of-some-length", "another-key-for-bob"


def basic(password, name="me"):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


class TestKeys:
    @pytest.fixture(scope="class")
    def asking(self):
        with client(fake_backend(api_keys=(KEY, OTHER), media=False)) as asking:
            yield asking

    @pytest.mark.parametrize(
        "value",
        [f"Bearer {KEY}", f"bearer  {KEY} ", f"Bearer {OTHER}", basic(KEY), basic(KEY, ""), basic(OTHER)],
        ids=["bearer", "spaces", "second key", "basic", "basic without a name", "basic second key"],
    )
    def test_let_in(self, asking, value):
        assert asking.get("/metrics", headers={"Authorization": value}).status_code == 200

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "",
            "Bearer",
            "Bearer wrong-key-of-length",
            f"Bearer {KEY}x",
            f"Bearer {KEY[:-1]}",
            f"Token {KEY}",
            KEY,
            basic("wrong"),
            basic(""),
            "Basic !!!",
            "Basic /w==",
            "Bearer ä",
        ],
        ids=lambda value: str(value)[:20] or "empty",
    )
    def test_turned_away(self, asking, value):
        headers = {} if value is None else {"Authorization": value.encode()}
        response = asking.get("/metrics", headers=headers)
        assert response.status_code == 401
        assert response.json()["error"]["code"] == "invalid_api_key"
        assert KEY not in response.text

    @pytest.mark.parametrize("path", ["/health", "/ready"])
    def test_supervisors_need_no_key(self, asking, path):
        assert asking.get(path).status_code == 200

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/"),
            ("GET", "/openapi.json"),
            ("GET", "/nowhere"),
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "//health"),
            ("GET", "/health/"),
            ("GET", "/%2e/metrics"),
        ],
    )
    def test_everything_else_does(self, asking, method, path):
        assert asking.request(method, path).status_code == 401

    def test_a_browser_is_asked_for_the_key_and_a_program_is_not(self, asking):
        page = asking.get("/", headers={"Accept": "text/html,*/*"})
        assert page.headers["WWW-Authenticate"].startswith("Basic ")
        assert asking.get("/v1/models").headers["WWW-Authenticate"] == "Bearer"
        posted = asking.post("/v1/chat/completions", headers={"Accept": "text/html"})
        assert posted.headers["WWW-Authenticate"] == "Bearer"

    def test_any_host_will_do_where_there_is_a_key(self, asking):
        headers = {"Host": "evil.example", "Authorization": f"Bearer {KEY}"}
        assert asking.get("/metrics", headers=headers).status_code == 200


class TestHosts:
    @pytest.fixture(scope="class")
    def asking(self):
        backend = fake_backend(allowed_hosts=("Qvl.Example.",), host="192.0.2.7", media=False)
        with client(backend) as asking:
            yield asking

    @pytest.mark.parametrize(
        "host",
        [
            "localhost",
            "LOCALHOST:8000",
            "127.0.0.1:8000",
            "[::1]:8000",
            "qvl.example",
            "qvl.example.:80",
            "192.0.2.7",
        ],
    )
    def test_ours(self, asking, host):
        assert asking.get("/health", headers={"Host": host}).status_code == 200

    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "localhost.evil.example",
            "",
            "127.0.0.1.evil.example",
            "[::2]",
            "a:b:c",
            "@localhost",
        ],
    )
    def test_not_ours(self, asking, host):
        response = asking.get("/health", headers={"Host": host})
        assert response.status_code == 421
        assert "--server-name" in response.json()["error"]["message"]

    def test_names_that_were_given_are_checked_even_with_a_key(self):
        backend = fake_backend(allowed_hosts=("qvl.example",), api_keys=(KEY,), media=False)
        with client(backend, Authorization=f"Bearer {KEY}") as asking:
            assert asking.get("/metrics", headers={"Host": "evil.example"}).status_code == 421
            assert asking.get("/metrics", headers={"Host": "qvl.example"}).status_code == 200

    def test_an_address_for_all_interfaces_is_no_name(self):
        gate = Gate(serve_settings(host="0.0.0.0"))
        with pytest.raises(HTTPException):
            gate.check("/", "GET", Headers({"host": "0.0.0.0"}), "192.0.2.1")


class TestClients:
    def test_a_digest_of_the_key_or_the_address_and_never_a_header(self):
        headers = {"host": "localhost", "x-forwarded-for": "192.0.2.99", "forwarded": "for=192.0.2.99"}
        assert Gate(serve_settings()).check("/v1/models", "GET", Headers(headers), "192.0.2.1") == "192.0.2.1"
        gate = Gate(serve_settings(api_keys=(KEY, OTHER)))
        seen = [
            gate.check("/", "GET", Headers({"authorization": f"Bearer {key}"}), "192.0.2.1")
            for key in (KEY, KEY, OTHER)
        ]
        assert seen[0] == seen[1] != seen[2]
        assert not any(key[:4] in name for key in (KEY, OTHER) for name in seen)


class TestForms:
    """What a page of another site can make a browser send without asking first."""

    @pytest.fixture(scope="class")
    def asking(self):
        with client(fake_backend(media=False)) as asking:
            yield asking

    @pytest.mark.parametrize(
        "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
    )
    def test_only_json_is_read(self, asking, kind):
        response = asking.post("/v1/chat/completions", content="{}", headers={"Content-Type": kind})
        assert response.status_code == 415

    def test_without_a_type(self, asking):
        request = asking.build_request("POST", "/v1/chat/completions", content="{}")
        request.headers.pop("content-type", None)
        assert asking.send(request).status_code == 415

    def test_chunks_too(self, asking):
        headers = {"Content-Type": "text/plain"}
        response = asking.post("/v1/chat/completions", content=iter([b"{}"]), headers=headers)
        assert response.status_code == 415

    @pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8"])
    def test_json_is_let_through(self, asking, kind):
        response = asking.post("/nowhere", content="{}", headers={"Content-Type": kind})
        assert response.status_code == 404


class TestCors:
    ORIGIN = "https://app.example"

    def preflight(self, asking, origin):
        headers = {
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization",
        }
        return asking.options("/v1/chat/completions", headers=headers)

    def test_closed_unless_asked(self):
        with client(fake_backend(media=False)) as asking:
            response = self.preflight(asking, self.ORIGIN)
            assert "access-control-allow-origin" not in response.headers
            response = asking.get("/health", headers={"Origin": self.ORIGIN})
            assert "access-control-allow-origin" not in response.headers

    def test_open_for_the_origins_that_were_named_even_where_a_key_is_missing(self):
        backend = fake_backend(allowed_origins=(self.ORIGIN,), api_keys=(KEY,), media=False)
        with client(backend) as asking:
            assert self.preflight(asking, self.ORIGIN).headers["access-control-allow-origin"] == self.ORIGIN
            assert "access-control-allow-origin" not in self.preflight(asking, "https://evil.example").headers
            refused = asking.get("/v1/models", headers={"Origin": self.ORIGIN})
            assert refused.status_code == 401
            assert refused.headers["access-control-allow-origin"] == self.ORIGIN
            assert "access-control-allow-credentials" not in refused.headers


class TestReading:
    def test_keys_of_the_environment_and_of_a_file(self, tmp_path):
        file = tmp_path / "keys"
        file.write_text(f"# of the team\n{OTHER}\n\n  third-key-here \n{KEY}\n")
        assert read_keys(KEY, file) == (KEY, OTHER, "third-key-here")
        assert read_keys(None, None) == ()

    @pytest.mark.parametrize("key", ["", "short", "has a space in it", "schlüsselwort", "tab\there-and-more"])
    def test_keys_that_cannot_be_sent_or_are_guessed_soon(self, key, tmp_path):
        with pytest.raises(InputError, match="8 or more visible ASCII"):
            read_keys(key, None)
        file = tmp_path / "keys"
        file.write_text(f"{KEY}\n{key or 'x'}\n", encoding="utf-8")
        with pytest.raises(InputError, match="8 or more visible ASCII"):
            read_keys(None, file)

    @pytest.mark.parametrize("content", [None, b"", b"# nothing\n\n", b"\xff\xfe\x00"])
    def test_files_without_a_key(self, content, tmp_path):
        file = tmp_path / "keys"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(InputError, match="key file"):
            read_keys(None, file)

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.0.1"])
    def test_loopback_needs_no_key(self, host):
        check_binding(host, (), open_to_all=False)

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "qvl.example", ""])
    def test_other_addresses_need_one_or_a_clear_word(self, host):
        with pytest.raises(InputError, match="--no-api-key"):
            check_binding(host, (), open_to_all=False)
        check_binding(host, (KEY,), open_to_all=False)
        check_binding(host, (), open_to_all=True)


def test_no_key_in_the_log(capfd):
    with client(fake_backend(api_keys=(KEY,), media=False)) as asking:
        asking.get("/metrics", headers={"Authorization": f"Bearer {KEY}"})
        asking.get(f"/nowhere?key={KEY}", headers={"Authorization": f"Bearer {KEY}"})
        asking.get("/metrics", headers={"Authorization": "Bearer some-wrong-key"})
    lines = capfd.readouterr().err.splitlines()
    assert KEY not in "".join(lines) and "some-wrong-key" not in "".join(lines)
    first = json.loads(lines[0])
    assert first["status"] == 200 and len(first["client"]) == 12
