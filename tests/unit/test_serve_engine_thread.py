"""The engine on its thread: who gets what, who leaves when, and what happens when it breaks."""

import asyncio
import gc
import threading
import time

import pytest

from qvl.errors import GenerationError
from qvl.serve import logs
from qvl.serve.errors import DrainingError, QueueFullError
from qvl.types import SamplingParams
from support.serving import ScriptedEngine, collect, fake_backend, job, run_jobs, text_prompt

LONG = "0123456789" * 300


def script_by_length(prompt):
    return f"{len(prompt.token_ids)} tokens"


def run(test, script=LONG, *, engine=None, **settings):
    """Runs ``test(service, engine)`` on a started service; whatever it leaves behind is a failure."""
    engine = engine or ScriptedEngine(script)
    backend = fake_backend(engine=engine, media=False, **settings)
    service = backend.service

    async def main():
        service.start()
        try:
            return await asyncio.wait_for(test(service, engine), 20.0)
        finally:
            await service.close()

    result = asyncio.run(main())
    assert not engine._sequences and service.jobs == 0
    return result


async def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.002)


class TestAnswers:
    def test_many_jobs_each_get_their_own(self):
        texts = ["x" * n for n in range(1, 33)]
        backend = fake_backend(script_by_length, media=False)
        answers = run_jobs(backend, *(job(text) for text in texts))
        expected = [script_by_length(text_prompt(text)) for text in texts]
        assert ["".join(piece.text for piece in pieces) for pieces in answers] == expected

    def test_only_the_last_piece_has_an_end(self):
        (pieces,) = run_jobs(fake_backend("abc", media=False), job())
        assert [piece.end for piece in pieces] == [None, None, None, "stop"]

    def test_what_add_refuses_comes_out_at_the_first_piece(self):
        async def test(service, engine):
            pieces = service.submit(job(params=SamplingParams(max_new_tokens=0)))
            with pytest.raises(GenerationError, match="max_new_tokens"):
                await anext(pieces)
            assert [piece async for piece in pieces] == []
            return await collect(service, job(max_new_tokens=2))

        assert run(test)[-1].end == "length"

    def test_the_thread_sleeps_while_there_is_nothing_to_do(self):
        class Watched(ScriptedEngine):
            asked = 0

            @property
            def has_work(self):
                self.asked += 1
                return super().has_work

        async def test(service, engine):
            await collect(service, job(max_new_tokens=2))
            await asyncio.sleep(0.05)
            before = engine.asked
            await asyncio.sleep(0.05)
            assert engine.asked == before > 0

        run(test, engine=Watched(LONG))

    def test_client_and_deadline_are_those_of_the_request(self):
        async def test(service, engine):
            record = logs.RequestRecord(client="somebody", deadline=time.monotonic() + 0.05)
            token = logs.current.set(record)
            try:
                pieces = await collect(service, job(max_new_tokens=100_000))
            finally:
                logs.current.reset(token)
            assert engine.added[0][2] == "somebody"
            assert pieces[-1].end == "timeout"
            assert record.completion_tokens == pieces[-1].usage.completion_tokens > 0
            assert record.ends == ["timeout"] and record.first_token > record.begun

        run(test, engine=ScriptedEngine([17] * 100_000, pause=0.001))


class TestLeaving:
    def test_closing_the_iterator_ends_the_sequence_before_the_next_step(self):
        async def test(service, engine):
            gate = threading.Semaphore(1)  # a step at a time
            engine.before_step = gate.acquire
            pieces = service.submit(job(max_new_tokens=5000))
            await anext(pieces)
            await until(lambda: not gate._value and engine._sequences)
            await pieces.aclose()
            gate.release(5)  # the step that is under way, and those that tidy up
            await until(lambda: not engine._sequences and service.jobs == 0)
            assert engine.stats().output_tokens <= 2  # the first one, and that of the step under way

        run(test, [17] * 5000)

    def test_letting_go_of_the_iterator(self):
        async def test(service, engine):
            async for _ in service.submit(job(max_new_tokens=5000)):
                break
            gc.collect()
            await until(lambda: not engine._sequences)

        run(test, engine=ScriptedEngine([17] * 5000, pause=0.002))

    def test_an_iterator_that_is_dropped_while_its_service_is_busy_with_itself(self):
        """The collector may run anywhere, also where a lock is held."""

        async def test(service, engine):
            pieces = service.submit(job(max_new_tokens=5000))
            await until(lambda: engine._sequences)
            with service._lock:
                del pieces
                gc.collect()
            await until(lambda: not engine._sequences)

        run(test, engine=ScriptedEngine([17] * 5000, pause=0.002))

    def test_a_cancelled_task(self):
        async def test(service, engine):
            task = asyncio.create_task(collect(service, job(max_new_tokens=5000)))
            await until(lambda: engine._sequences)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: not engine._sequences)

        run(test, engine=ScriptedEngine([17] * 5000, pause=0.002))

    def test_a_cancelled_wait_for_a_piece_even_if_somebody_holds_the_iterator(self):
        async def test(service, engine):
            held = service.submit(job(max_new_tokens=5000))
            gate = threading.Event()
            engine.before_step = gate.wait  # no piece comes
            task = asyncio.create_task(anext(held))
            await until(lambda: engine._sequences)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.set()
            await until(lambda: not engine._sequences)
            assert [piece async for piece in held] == []

        run(test, [17] * 5000)

    def test_before_the_job_has_reached_the_engine(self):
        async def test(service, engine):
            gate = threading.Event()
            engine.before_step = gate.wait  # the thread is busy with the first one
            first = service.submit(job(max_new_tokens=1))
            await until(lambda: engine.added)
            await service.submit(job(max_new_tokens=5000)).aclose()
            gate.set()
            assert [piece.end async for piece in first][-1] == "length"
            await until(lambda: service.jobs == 0)
            assert len(engine.added) == 1

        run(test)

    def test_after_the_end_nothing_is_left_to_cancel(self):
        async def test(service, engine):
            pieces = service.submit(job(max_new_tokens=1))
            assert [piece.end async for piece in pieces][-1] == "length"
            aborted = []
            engine.abort = aborted.append
            await pieces.aclose()
            await asyncio.sleep(0.02)
            assert aborted == []
            del engine.abort

        run(test)

    def test_a_deadline_that_passes_while_it_runs(self):
        async def test(service, engine):
            pieces = await collect(service, job(max_new_tokens=5000, deadline=time.monotonic() + 0.05))
            assert pieces[-1].end == "timeout" and not engine._sequences
            assert pieces[-1].usage.completion_tokens == sum(len(p.token_ids) for p in pieces) > 0

        run(test, engine=ScriptedEngine([17] * 5000, pause=0.002))

    def test_a_stop_text_ends_the_sequence_in_its_own_step(self):
        async def test(service, engine):
            await collect(service, job(stops=("2",)))
            assert engine.stats().steps == 3

        run(test, "0123456789")


class TestRoom:
    def test_more_than_the_queue_holds_is_refused_at_once(self):
        async def test(service, engine):
            kept = [service.submit(job(max_new_tokens=5000)) for _ in range(3 + 2)]
            with pytest.raises(QueueFullError):
                service.submit(job())
            await kept.pop().aclose()
            await until(lambda: service.jobs == 4)
            kept.append(service.submit(job()))
            for pieces in kept:
                await pieces.aclose()

        run(test, engine=ScriptedEngine([17] * 5000, pause=0.001), waiting=2, max_sequences=3)


class TestFailures:
    def test_a_step_that_raises_ends_its_requests_and_the_thread_lives_on(self):
        async def test(service, engine):
            engine.before_step = _raise_once(engine)
            pieces = await collect(service, job())
            assert pieces[-1].end == "error" and isinstance(pieces[-1].error, ZeroDivisionError)
            assert service.alive
            assert (await collect(service, job(max_new_tokens=1)))[-1].end == "length"

        run(test)

    def test_requests_that_the_engine_did_not_drop_go_on(self):
        async def test(service, engine):
            first = asyncio.create_task(collect(service, job("a", max_new_tokens=5)))
            await until(lambda: len(engine.added) == 1)
            second = asyncio.create_task(collect(service, job("b", max_new_tokens=5)))
            await until(lambda: len(engine.added) == 2)

            def drop_the_first():
                engine.before_step = lambda: None
                del engine._sequences[0], engine._tokens[0]
                raise ZeroDivisionError

            engine.before_step = drop_the_first
            engine.pause = 0.0
            assert (await first)[-1].end == "error"
            assert (await second)[-1].end == "length"

        run(test, engine=ScriptedEngine(LONG, pause=0.02))

    def test_steps_that_keep_failing_make_it_unwell_until_one_works(self):
        async def test(service, engine):
            def fail():
                raise ZeroDivisionError

            for times in range(1, 4):
                engine.before_step = fail
                assert (await collect(service, job()))[-1].end == "error"
                assert service.alive == (times < 3)
            engine.before_step = lambda: None
            assert (await collect(service, job(max_new_tokens=1)))[-1].end == "length"
            assert service.alive

        run(test)

    def test_a_thread_that_dies_ends_all_answers_and_takes_no_more(self):
        async def test(service, engine):
            def die():
                raise SystemExit

            engine.before_step = die
            pieces = await collect(service, job())
            assert pieces[-1].end == "error"
            assert not service.alive
            with pytest.raises(DrainingError):
                service.submit(job())
            engine._sequences.clear()

        run(test)

    def test_a_step_that_never_ends_shows(self):
        async def test(service, engine):
            gate = threading.Event()
            engine.before_step = gate.wait
            pieces = service.submit(job(max_new_tokens=1))
            await until(lambda: not service.alive)
            gate.set()
            assert [piece.end async for piece in pieces][-1] in ("length", "timeout")
            assert service.alive

        run(test, request_seconds=0.05)


def _raise_once(engine):
    def fail():
        engine.before_step = lambda: None
        raise ZeroDivisionError

    return fail


class TestEnding:
    def test_while_draining_those_under_way_go_on_and_new_ones_are_refused(self):
        async def test(service, engine):
            running = asyncio.create_task(collect(service, job(max_new_tokens=30)))
            await until(lambda: engine._sequences)
            service.drain()
            with pytest.raises(DrainingError):
                service.submit(job())
            logs.current.set(logs.RequestRecord())  # a request that was accepted before
            assert (await collect(service, job(max_new_tokens=1)))[-1].end == "length"
            assert (await running)[-1].end == "length"

        run(test, engine=ScriptedEngine(LONG, pause=0.001))

    def test_closing_ends_what_is_under_way(self):
        async def test(service, engine):
            running = asyncio.create_task(collect(service, job(max_new_tokens=5000)))
            await until(lambda: engine._sequences)
            await service.close()
            assert (await running)[-1].end == "abort"
            assert not any(t.name == "qvl-engine" for t in threading.enumerate())

        run(test, engine=ScriptedEngine([17] * 5000, pause=0.001))

    def test_a_loop_that_is_gone_ends_its_jobs(self):
        engine = ScriptedEngine([17] * 5000, pause=0.002)
        service = fake_backend(engine=engine, media=False).service
        service.start()
        loop = asyncio.new_event_loop()

        async def begin():
            pieces = service.submit(job(max_new_tokens=5000))
            await anext(pieces)
            return pieces

        pieces = loop.run_until_complete(begin())
        loop.close()

        async def wait():
            await until(lambda: not engine._sequences and service.jobs == 0)
            assert service.alive
            await service.close()

        asyncio.run(wait())
        pieces._over = True


def test_what_was_generated_is_counted():
    backend = fake_backend("abc", media=False)
    run_jobs(backend, job("one"), job("two", max_new_tokens=2))
    text = backend.metrics.text()[0].decode()
    prompts = len(text_prompt("one").token_ids) + len(text_prompt("two").token_ids)
    for line in (
        'qvl_answers_total{end="stop"} 1.0',
        'qvl_answers_total{end="length"} 1.0',
        'qvl_tokens_total{kind="answer"} 6.0',
        f'qvl_tokens_total{{kind="prompt"}} {prompts}.0',
        "qvl_queue_seconds_count 2.0",
        "qvl_prompt_seconds_count 2.0",
        "qvl_first_token_seconds_count 2.0",
        "qvl_token_seconds_count 2.0",
        "qvl_running 0.0",
    ):
        assert line in text.splitlines(), line
    assert "qvl_step_seconds_count" in text


def test_times_of_an_answer_add_up():
    """With steps of 20 ms the prompt takes one of them, and each token another."""
    backend = fake_backend(engine=ScriptedEngine("abc", pause=0.02), media=False)
    run_jobs(backend, job())
    values = dict(line.rsplit(" ", 1) for line in backend.metrics.text()[0].decode().splitlines())
    queue, prompt, first, token = (
        float(values[f"qvl_{name}_seconds_sum"]) for name in ("queue", "prompt", "first_token", "token")
    )
    assert prompt > 0.019
    assert first == pytest.approx(queue + prompt, abs=0.001)
    assert token > 0.019
