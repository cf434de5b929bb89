"""What every request passes: limits, ids, logs, metrics, errors, and what becomes of clients that leave."""

import asyncio
import json
import socket
import threading
import time

import httpx
import pytest
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse

from qvl.errors import PromptTooLongError
from qvl.serve.errors import DrainingError, QueueFullError
from support.serving import ScriptedEngine, client, fake_backend, job, live_server

SECRET = "the text of an error that nobody expected"


def routes():
    """Routes that stand for those of the API."""
    router = APIRouter()

    @router.post("/test/echo")
    async def echo(request: Request):
        return {"bytes": len(await request.body())}

    @router.post("/test/read")
    async def read(body: dict):
        return body

    @router.post("/test/answer")
    async def answer(request: Request, body: dict | None = None):
        pieces = [piece async for piece in request.app.state.backend.service.submit(job(max_new_tokens=5000))]
        return {"text": "".join(piece.text for piece in pieces), "end": pieces[-1].end}

    @router.post("/test/stream")
    async def stream(request: Request, body: dict | None = None):
        pieces = request.app.state.backend.service.submit(job(max_new_tokens=5000))

        async def lines():
            async for piece in pieces:
                yield json.dumps({"text": piece.text, "end": piece.end}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    @router.post("/test/break/{what}")
    async def break_down(what: str):
        raise {"full": QueueFullError, "draining": DrainingError, "long": PromptTooLongError}.get(
            what, ZeroDivisionError
        )(SECRET)

    @router.post("/test/break-off")
    async def break_off():
        async def lines():
            yield "one\n"
            raise ZeroDivisionError(SECRET)

        return StreamingResponse(lines())

    @router.post("/test/flood")
    async def flood(body: dict):
        async def lines():
            while True:
                yield "x" * 2**20

        return StreamingResponse(lines())

    @router.post("/test/sleep")
    async def sleep(body: dict):
        await asyncio.sleep(20)

    @router.get("/test/state")
    async def state(request: Request):
        state = request.state
        return {
            "client": state.client,
            "id": state.request_id,
            "seconds": state.deadline - time.monotonic(),
        }

    return router


def slow_engine(pause=0.002):
    return ScriptedEngine([17] * 5000, pause=pause)


def log_lines(capfd):
    return [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]


class TestBodies:
    @pytest.fixture(scope="class")
    def asking(self):
        with client(fake_backend(body=1000, media=False), routes()) as asking:
            yield asking

    @pytest.mark.parametrize("size", [1000, 1001, 50_000])
    @pytest.mark.parametrize("chunked", [False, True], ids=["declared", "chunked"])
    @pytest.mark.parametrize("path", ["/test/echo", "/test/read"])
    def test_the_size_is_bounded(self, asking, size, chunked, path):
        content = ('{"a": "' + "x" * (size - 9) + '"}').encode()
        assert len(content) == size
        sent = iter([content[:500], content[500:]]) if chunked else content
        response = asking.post(path, content=sent, headers={"Content-Type": "application/json"})
        assert response.status_code == (200 if size <= 1000 else 413)
        if size > 1000:
            assert "1000 bytes" in response.json()["error"]["message"]

    def test_a_declared_size_is_refused_before_it_is_read(self):
        backend = fake_backend(body=1000, media=False)
        with live_server(backend, routes()) as server, connection(server) as raw:
            raw.sendall(head("/test/echo", 10**9))
            assert b" 413 " in raw.recv(4096)

    def test_a_body_that_does_not_come_times_out(self):
        backend = fake_backend(body_seconds=0.1, media=False)
        with live_server(backend, routes()) as server, connection(server) as raw:
            raw.sendall(head("/test/echo", 100) + b'{"a": ')
            assert b" 408 " in raw.recv(4096)

    def test_work_that_takes_too_long_is_ended(self, monkeypatch):
        monkeypatch.setattr("qvl.serve.middleware.GRACE_SECONDS", 0.1)
        with client(fake_backend(request_seconds=0.1, media=False), routes()) as asking:
            begun = time.monotonic()
            response = asking.post("/test/sleep", json={})
            assert response.status_code == 408 and response.json()["error"]["code"] == "timeout"
            assert 0.2 <= time.monotonic() - begun < 10

    def test_a_reader_that_stops_reading_is_cut_off(self, monkeypatch, capfd):
        """What it does not take waits in the server; its connection ends when its time is over."""
        monkeypatch.setattr("qvl.serve.middleware.GRACE_SECONDS", 0.1)
        backend = fake_backend(request_seconds=0.5, media=False)
        with live_server(backend, routes()) as server, connection(server) as raw:
            raw.sendall(head("/test/flood", 2) + b"{}")
            wait(lambda: backend.requests)
            wait(lambda: not backend.requests, 10.0)
        (line,) = log_lines(capfd)
        assert line["end"] == "timeout" and 500 <= line["total_ms"] < 5000

    def test_all_bodies_together_are_bounded(self):
        backend = fake_backend(body=1000, waiting_memory=1500, media=False)
        with live_server(backend, routes()) as server:
            with connection(server) as raw:
                raw.sendall(head("/test/echo", 1000) + b"x" * 999)
                for _ in range(200):  # until the first one has been read
                    response = httpx.post(f"{server.url}/test/echo", json={"a": "x" * 900})
                    if response.status_code == 429:
                        break
                assert response.status_code == 429 and response.headers["Retry-After"] == "5"
                raw.sendall(b"x")
                assert b" 200 " in raw.recv(4096)
            assert httpx.post(f"{server.url}/test/echo", json={"a": "x" * 900}).status_code == 200


def head(path, length):
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def connection(server):
    port = int(server.url.rsplit(":", 1)[1])
    return socket.create_connection(("127.0.0.1", port), timeout=10)


class TestErrors:
    @pytest.fixture(scope="class")
    def asking(self):
        with client(fake_backend(media=False), routes()) as asking:
            yield asking

    def check(self, response, status):
        assert response.status_code == status
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        return error

    def test_what_nobody_expected_is_not_told(self, asking, caplog):
        response = asking.post("/test/break/anything")
        self.check(response, 500)
        assert SECRET not in response.text and "ZeroDivision" not in response.text
        assert SECRET in caplog.text  # but logged

    @pytest.mark.parametrize(("what", "status", "after"), [("full", 429, "5"), ("draining", 503, "10")])
    def test_what_passes_says_when_to_come_again(self, asking, what, status, after):
        response = asking.post(f"/test/break/{what}")
        self.check(response, status)
        assert response.headers["Retry-After"] == after

    def test_the_clients_fault_is_told(self, asking, caplog):
        response = asking.post("/test/break/long")
        assert self.check(response, 400)["message"] == SECRET
        assert caplog.text == ""

    def test_routes_methods_and_values_that_are_not_there(self, asking):
        assert self.check(asking.get("/nowhere"), 404)["code"] == "not_found"
        assert self.check(asking.put("/test/echo"), 405)
        assert self.check(asking.post("/test/read", json=[1]), 400)
        headers = {"Content-Type": "application/json"}
        assert self.check(asking.post("/test/read", content="{", headers=headers), 400)

    def test_an_answer_that_breaks_off_ends_without_its_last_chunk(self, caplog):
        with (
            live_server(fake_backend(media=False), routes()) as server,
            pytest.raises(httpx.RemoteProtocolError),
            httpx.stream("POST", f"{server.url}/test/break-off") as response,
        ):
            assert list(response.iter_lines()) == ["one"]
        assert SECRET in caplog.text


class TestHeaders:
    @pytest.fixture(scope="class")
    def asking(self):
        with client(fake_backend(media=False, request_seconds=50.0), routes()) as asking:
            yield asking

    @pytest.mark.parametrize("path", ["/health", "/nowhere", "/metrics", "/test/state"])
    def test_every_answer_has_those_that_keep_browsers_safe(self, asking, path):
        headers = asking.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in headers["Content-Security-Policy"]

    def test_an_id_of_our_own_or_the_callers(self, asking):
        ids = [asking.get("/test/state").headers["X-Request-Id"] for _ in range(2)]
        assert ids[0] != ids[1]
        given = asking.get("/test/state", headers={"X-Request-Id": "trace-1.2:3"})
        assert given.headers["X-Request-Id"] == given.json()["id"] == "trace-1.2:3"

    @pytest.mark.parametrize("bad", ["a b", "x" * 129, 'a"b', "ä"], ids=["space", "long", "quote", "accent"])
    def test_ids_that_would_spoil_a_log_are_replaced(self, asking, bad):
        response = asking.get("/test/state", headers={"X-Request-Id": bad.encode()})
        assert response.headers["X-Request-Id"].isalnum()

    def test_routes_know_their_client_and_their_deadline(self, asking):
        state = asking.get("/test/state").json()
        assert state["client"] == "testclient" and 0 < state["seconds"] <= 50.0

    def test_no_page_of_documentation_and_the_description_is_there(self, asking):
        assert asking.get("/docs").status_code == asking.get("/redoc").status_code == 404
        described = asking.get("/openapi.json").json()["paths"]
        assert {"/health", "/ready", "/metrics"} <= described.keys()


class TestRecords:
    def test_one_line_for_each_request(self, capfd):
        with client(fake_backend("abc", media=False), routes()) as asking:
            asking.post("/test/answer", headers={"X-Request-Id": "one"})
            asking.get("/nowhere/at/all")
        answered, lost = log_lines(capfd)
        assert answered["id"] == "one" and answered["route"] == "/test/answer"
        assert answered["status"] == 200 and answered["method"] == "POST"
        assert answered["completion_tokens"] == 4 and answered["prompt_tokens"] > 0
        assert answered["end"] == "stop" and answered["media"] == 0
        assert 0 <= answered["first_token_ms"] <= answered["total_ms"]
        assert (lost["route"], lost["status"], lost["first_token_ms"]) == ("other", 404, None)

    def test_no_lines_where_they_are_not_wanted(self, capfd):
        with client(fake_backend(log_requests=False, media=False)) as asking:
            asking.get("/health")
        assert capfd.readouterr().err == ""

    def test_metrics_by_route_and_status(self):
        with client(fake_backend("abc", media=False), routes()) as asking:
            asking.post("/test/answer")
            for path in ("/a", "/b"):
                asking.get(path)
            lines = asking.get("/metrics").text.splitlines()
        assert 'qvl_requests_total{route="/test/answer",status="200"} 1.0' in lines
        assert 'qvl_requests_total{route="other",status="404"} 2.0' in lines
        assert 'qvl_answers_total{end="stop"} 1.0' in lines

    def test_two_servers_count_for_themselves(self):
        first, second = fake_backend(media=False), fake_backend(media=False)
        with client(first) as asking, client(second) as other:
            asking.get("/health")
            assert 'route="/health"' not in other.get("/metrics").text


class TestLeaving:
    """A client that is gone: its sequence leaves the engine, streamed or not."""

    @pytest.mark.parametrize("path", ["/test/answer", "/test/stream"])
    def test_the_work_ends(self, path, capfd):
        engine = slow_engine()
        backend = fake_backend(engine=engine, media=False)
        with live_server(backend, routes()) as server:
            with connection(server) as raw:
                raw.sendall(head(path, 2) + b"{}")
                wait(lambda: engine.stats().output_tokens > 3)
            wait(lambda: not engine._sequences, 2.0)
            wait(lambda: not backend.requests)
            assert backend.service.jobs == 0
        (line,) = log_lines(capfd)
        assert "gone" in line["end"] and line["completion_tokens"] > 0

    def test_a_client_that_stays_gets_everything(self):
        with live_server(fake_backend("x" * 200, media=False), routes()) as server:
            for _ in range(3):
                answer = httpx.post(f"{server.url}/test/answer").json()
                assert answer == {"text": "x" * 200, "end": "stop"}
                with httpx.stream("POST", f"{server.url}/test/stream") as response:
                    lines = [json.loads(line) for line in response.iter_lines()]
                assert "".join(line["text"] for line in lines) == "x" * 200

    def test_in_the_middle_of_its_body(self):
        backend = fake_backend(media=False)
        with live_server(backend, routes()) as server:
            with connection(server) as raw:
                raw.sendall(head("/test/read", 100) + b"{")
                wait(lambda: backend.requests)
            wait(lambda: not backend.requests)
            assert httpx.get(f"{server.url}/health").status_code == 200


def wait(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


class TestOperating:
    def test_health_and_readiness_follow_the_engine(self):
        engine = ScriptedEngine("abc")
        with client(fake_backend(engine=engine, media=False), routes()) as asking:
            assert asking.get("/health").json() == {"status": "ok"}
            assert asking.get("/ready").status_code == 200

            def fail():
                raise ZeroDivisionError

            engine.before_step = fail
            for _ in range(3):
                assert asking.post("/test/answer").json()["end"] == "error"
            health = asking.get("/health")
            assert health.status_code == 503 and health.json()["failed"] == ["engine"]
            assert asking.get("/ready").status_code == 503

    def test_a_media_worker_may_be_replaced_but_not_be_gone_for_long(self, monkeypatch):
        class Media:
            alive = True

            async def start(self):
                pass

            async def close(self):
                pass

        backend, now = fake_backend(media=False), [0.0]
        object.__setattr__(backend, "media", Media())
        monkeypatch.setattr("qvl.serve.routes.operations.monotonic", lambda: now[0])
        with client(backend) as asking:
            for alive, time_, status in (
                (True, 0, 200),
                (False, 10, 200),
                (False, 39, 200),
                (True, 40, 200),
                (False, 50, 200),
                (False, 79, 200),
                (False, 81, 503),
                (True, 82, 200),
            ):
                Media.alive, now[0] = alive, float(time_)
                assert asking.get("/health").status_code == status, time_
                assert asking.get("/ready").status_code == status, time_

    def test_load_balancers_may_ask_for_the_head_alone(self):
        with client(fake_backend(media=False)) as asking:
            for path in ("/health", "/ready"):
                response = asking.head(path)
                assert (response.status_code, response.content) == (200, b"")

    def test_while_draining(self):
        backend = fake_backend(media=False)
        with client(backend, routes()) as asking:
            backend.service.drain()
            assert asking.get("/health").status_code == 200
            assert asking.get("/metrics").status_code == 200
            assert asking.get("/ready").status_code == 503
            for response in (asking.post("/test/answer"), asking.get("/v1/models")):
                assert response.status_code == 503 and response.headers["Retry-After"] == "10"
                assert "about to stop" in response.json()["error"]["message"]

    def test_more_requests_than_can_be_held(self, monkeypatch):
        monkeypatch.setattr("qvl.serve.middleware.EXTRA_REQUESTS", 0)
        engine = slow_engine()
        backend = fake_backend(engine=engine, waiting=1, max_sequences=1, media=False)
        with live_server(backend, routes()) as server:
            raws = [connection(server) for _ in range(2)]
            for raw in raws:
                raw.sendall(head("/test/answer", 2) + b"{}")
            wait(lambda: len(backend.requests) == 2)
            refused = httpx.post(f"{server.url}/test/echo", json={})
            healthy = httpx.get(f"{server.url}/health")
            for raw in raws:
                raw.close()
            assert refused.status_code == 429 and refused.headers["Retry-After"] == "5"
            assert healthy.status_code == 200

    def test_the_thread_ends_with_the_application(self):
        with client(fake_backend(media=False)):
            assert any(thread.name == "qvl-engine" for thread in threading.enumerate())
        assert not any(thread.name == "qvl-engine" for thread in threading.enumerate())

    def test_an_application_that_cannot_start_says_why(self):
        class Media:
            alive = False

            async def start(self):
                raise OSError("no workers")

        backend = fake_backend(media=False)
        object.__setattr__(backend, "media", Media())
        with pytest.raises(OSError, match="no workers"), client(backend):
            pass
        assert not backend.service.alive


def test_slow_readers_hold_nobody_up():
    engine = ScriptedEngine("x" * 400)

    async def main():
        backend = fake_backend(engine=engine, media=False)
        backend.service.start()
        slow = backend.service.submit(job(max_new_tokens=400))
        await anext(slow)
        quick = [piece async for piece in backend.service.submit(job(max_new_tokens=400))]
        rest = [piece async for piece in slow]
        await backend.service.close()
        return quick, rest

    quick, rest = asyncio.run(main())
    assert quick[-1].end == rest[-1].end == "length"
    assert len(rest) == len(quick) - 1
