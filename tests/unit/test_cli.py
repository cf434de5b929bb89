"""The command line: exit codes, one-line errors, what goes to stdout, JSON; with a tiny checkpoint."""

import io
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from qvl.cli import BROKEN_PIPE, FAILED, INTERRUPTED, OK, USAGE, main
from qvl.cli.app import app
from qvl.cli.chat import HELP
from qvl.cli.report import boxes
from qvl.cli.streams import write
from support.checkpoint import write_checkpoint
from support.video import write_video

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "tests" / "golden"


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(0).integers(0, 255, (60, 100, 3), np.uint8)
    Image.fromarray(noise).save(folder / "picture.png")
    (folder / "picture.mp4").write_bytes((folder / "picture.png").read_bytes())
    write_video(folder / "video.mp4", frames=8, size=(64, 48), fps=4)
    (folder / "text.jpg").write_text("this is no picture " * 20)
    Image.fromarray(noise).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    (folder / "corrupt.mp4").write_bytes((folder / "video.mp4").read_bytes()[:60] + bytes(2000))
    Image.new("RGB", (5000, 1)).save(folder / "thin.png")
    return folder


def one_line(err, *parts):
    """The last line is the error, there is no other line of an error, and it holds ``parts``."""
    lines = err.strip().splitlines()
    assert lines[-1].startswith("qvl: "), err
    assert "Traceback" not in err
    for part in parts:
        assert part in lines[-1]
    return True


class TestAsk:
    def test_the_answer_and_nothing_else_is_on_stdout(self, run, model, media):
        code, out, err = run("ask", media / "picture.png", "What?", "--model", model, "--max-new-tokens", 3)
        assert (code, err) == (OK, "")
        assert out.endswith("\n")

    def test_a_plain_question(self, run, model):
        assert run("ask", "Who are you?", "-m", model, "--max-new-tokens", 2)[0] == OK

    def test_json(self, run, model, media):
        words = [
            "ask",
            media / "picture.png",
            media / "video.mp4",
            "What?",
            "-m",
            model,
            "--max-new-tokens",
            3,
        ]
        code, out, _ = run(*words, "--json", "--fps", 2)
        answer = json.loads(out)
        assert (code, out.count("\n")) == (OK, 1)
        assert set(answer) == {
            "model", "question", "answer", "finish_reason", "media", "tokens", "seconds", "boxes"
        }  # fmt: skip
        assert answer["finish_reason"] in ("stop", "length")
        assert answer["tokens"]["generated"] <= 3
        assert answer["tokens"]["media"] == sum(medium["tokens"] for medium in answer["media"])
        assert answer["tokens"]["prompt"] > answer["tokens"]["media"]
        assert [m["kind"] for m in answer["media"]] == ["image", "video"]
        assert (answer["media"][0]["width"], answer["media"][0]["height"]) == (100, 60)
        assert set(answer["seconds"]) == {"prepare", "load", "first_token", "generate", "total"}

    def test_json_and_streamed_answer_agree(self, run, model, media):
        words = ["ask", media / "picture.png", "What?", "-m", model, "--max-new-tokens", 8]
        streamed = run(*words)[1]
        assert json.loads(run(*words, "--json")[1])["answer"].rstrip() == streamed.rstrip()

    def test_content_decides_what_a_file_is(self, run, model, media):
        words = ["ask", media / "picture.mp4", "What?", "-m", model, "--max-new-tokens", 1, "--json"]
        assert json.loads(run(*words)[1])["media"][0]["kind"] == "image"

    def test_a_picture_from_stdin(self, run, model, media, monkeypatch):
        stdin = io.TextIOWrapper(io.BytesIO((media / "picture.png").read_bytes()))
        monkeypatch.setattr(sys, "stdin", stdin)
        words = ["ask", "-", "What?", "-m", model, "--max-new-tokens", 1, "--json"]
        assert json.loads(run(*words)[1])["media"][0]["source"] == "stdin"

    def test_pixel_limits_change_the_tokens(self, run, model, media):
        words = ["ask", media / "picture.png", "What?", "-m", model, "--max-new-tokens", 1, "--json"]
        few = json.loads(run(*words, "--max-pixels", 56 * 56)[1])["tokens"]["media"]
        many = json.loads(run(*words, "--min-pixels", 112 * 112, "--max-pixels", 224 * 224)[1])["tokens"][
            "media"
        ]
        assert few < many

    def test_frames_per_second_mean_nothing_to_pictures_and_text(self, run, model, media):
        assert run("ask", media / "picture.png", "?", "-m", model, "--max-new-tokens", 1, "--fps", 1)[0] == OK
        assert run("ask", "Hello?", "-m", model, "--max-new-tokens", 1, "--fps", 1)[0] == OK

    def test_special_tokens_in_a_question_are_text(self, run, model):
        words = ["-m", model, "--max-new-tokens", 1, "--json"]
        plain = json.loads(run("ask", "<|image_pad|>", *words)[1])
        assert plain["tokens"]["media"] == 0
        assert plain["tokens"]["prompt"] > json.loads(run("ask", "x", *words)[1])["tokens"]["prompt"] + 3

    def test_boxes_are_in_pixels_of_the_original(self):
        rows = [{"width": 100, "height": 60, "grid": [1, 4, 8]}]
        answer = '[{"bbox_2d": [0, 14, 56, 28], "label": "cat"}, {"point_2d": [112, 56], "label": "end"}]'
        assert boxes(answer, rows, 14) == [
            {"label": "cat", "box": [0.0, 15.0, 50.0, 30.0]},
            {"label": "end", "point": [100.0, 60.0]},
        ]
        assert boxes(answer, [], 14) == []
        assert boxes(answer, [*rows, {"width": 9, "height": 9, "grid": [1, 4, 8]}], 14) is None

    def test_the_format_of_the_cache_reaches_generate(self, run, model, monkeypatch):
        import torch

        from qvl.engine.runner import Runner

        made, real = [], Runner._new_kv
        monkeypatch.setattr(Runner, "_new_kv", lambda self, n: made.append(real(self, n)) or made[-1])
        words = ["ask", "Who?", "-m", model, "--max-new-tokens", 2]
        for given, stored in (([], None), (["--kv-dtype", "int8"], torch.int8)):
            assert run(*words, *given)[0] == 0
            assert made.pop().stored == stored

    def test_sampling_with_a_seed_repeats(self, run, model):
        words = ["ask", "Who?", "-m", model, "--max-new-tokens", 8, "--temperature", 1.5, "--seed", 3]
        assert run(*words)[1] == run(*words)[1]
        assert len({run(*words[:-1], seed)[1] for seed in range(5)}) > 1  # and it is sampling

    def test_fps_is_checked_without_a_video(self, run, model, media):
        code, _, err = run("ask", media / "picture.png", "What?", "-m", model, "--fps", 0)
        assert code == USAGE and one_line(err, "--fps must be a positive number")

    def test_the_bundled_model_is_named_on_stderr(self, run):
        code, out, err = run("ask", "Who?", "--max-new-tokens", 1)
        assert code == OK
        assert "qvl/tiny" in err and "qvl/tiny" not in out

    def test_characters_that_stdout_does_not_know(self, model, media, tmp_path, monkeypatch):
        picture = tmp_path / "\udcff\u4e16.png"  # a file name that is no text, as other systems leave behind
        picture.write_bytes((media / "picture.png").read_bytes())
        words = ["ask", str(picture), "\u4e16\u754c?", "-m", model, "--max-new-tokens", "12"]
        words += ["--temperature", "2", "--seed", "1"]  # random bytes, most of which are no ASCII
        for encoding in ("ascii", "utf-8"):
            written = io.BytesIO()
            monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
            assert main([*words, "--json"]) == OK
            told = json.loads(written.getvalue())
            assert told["media"][0]["source"] == str(picture) and told["question"] == "\u4e16\u754c?"
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        assert main(words) == OK  # the answer has characters that are no ASCII, as the next line shows
        assert any(ord(character) > 127 for character in told["answer"])


class TestErrors:
    @pytest.mark.parametrize(
        ("name", "parts"),
        [
            ("missing.jpg", ["missing.jpg"]),
            ("text.jpg", ["text.jpg", "neither a picture"]),
            ("truncated.jpg", ["truncated.jpg", "truncated"]),
            ("corrupt.mp4", ["corrupt.mp4"]),
            ("thin.png", ["200"]),
            ("", ["folder"]),
        ],
    )
    def test_unusable_media(self, run, model, media, name, parts):
        code, out, err = run("ask", media / name, "What?", "-m", model)
        assert (code, out) == (USAGE, "")
        assert one_line(err, *parts)

    @pytest.mark.parametrize(
        ("words", "part"),
        [
            (["ask"], "QUESTION"),
            (["ask", "What?", "--no-such-option"], "--no-such-option"),
            (["ask", "What?", "--max-new-tokens", "many"], "--max-new-tokens"),
            (["ask", "What?", "--max-new-tokens", "-3"], "max_new_tokens"),
            (["ask", "What?", "--temperature", "-1"], "temperature"),
            (["ask", "What?", "--dtype", "int3"], "int3"),
            (["ask", "What?", "--max-pixels", "0"], "--max-pixels"),
            (["ask", "What?", "--min-pixels", "-5"], "--min-pixels"),
            (["ask", "What?", "--seed", "-1"], "--seed"),
            (["ask", "What?", "--seed", str(2**63)], "--seed"),
            (["ask", "What?", "--model", ""], "--model is empty"),
            (["ask", "\udcff"], "not text"),
            (["ask", "What?", "--system", "\udcff"], "--system"),
            (["ask", "https://example.org/cat.jpg"], "question"),
            (["ask", "  "], "question"),
            (["ask", "-", "-", "What?"], "stdin"),
            (["no-such-command"], "no-such-command"),
            (["info"], "MODEL"),
            (["info", "qvl/tiny", "no-such.png"], "no-such.png"),
            (["chat", "--temperature", "-1"], "temperature"),
            (["chat", "no-such.png"], "no-such.png"),
        ],
    )
    def test_wrong_usage(self, run, words, part):
        code, out, err = run(*words)
        assert (code, out) == (USAGE, "")
        assert len(err.strip().splitlines()) == 1
        assert one_line(err, part)

    def test_a_medium_where_the_question_should_be(self, run, media):
        code, _, err = run("ask", media / "picture.png")
        assert code == USAGE and one_line(err, "question")

    def test_a_device_that_is_not_there(self, run, model):
        code, out, err = run("ask", "What?", "-m", model, "--device", "toaster")
        assert (code, out) == (USAGE, "") and one_line(err, "toaster")

    def test_frames_per_second_below_zero(self, run, model, media):
        code, _, err = run("ask", media / "video.mp4", "What?", "-m", model, "--fps", -1)
        assert code == USAGE and one_line(err, "fps")

    @pytest.mark.parametrize(
        ("limits", "parts"),
        [
            (("--min-pixels", 9000, "--max-pixels", 4000), ["--min-pixels 9000", "--max-pixels 4000"]),
            (("--min-pixels", 10**6), ["--min-pixels", "checkpoint's largest size of 12544"]),
            (("--max-pixels", 100), ["--max-pixels", "checkpoint's least size of 3136"]),
        ],
    )
    def test_limits_that_leave_no_size(self, run, model, media, limits, parts):
        for command in (
            ["ask", media / "picture.png", "What?", "-m", model],
            ["info", model, media / "thin.png"],
        ):
            code, out, err = run(*command, *limits)
            assert (code, out) == (USAGE, "") and one_line(err, *parts)

    def test_nothing_and_half_a_picture_on_stdin(self, run, model, media, monkeypatch):
        for content, part in ((b"", "empty"), ((media / "whole.jpg").read_bytes()[:900], "stdin: ")):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            code, out, err = run("ask", "-", "What?", "-m", model)
            assert (code, out) == (USAGE, "") and one_line(err, part)

    def test_a_terminal_holds_no_picture(self, run, monkeypatch):
        monkeypatch.setattr(sys, "stdin", Terminal())
        code, _, err = run("ask", "-", "What?")
        assert code == USAGE and one_line(err, "terminal")

    def test_a_prompt_longer_than_the_model_allows(self, run, tmp_path):
        model = write_checkpoint(tmp_path, max_position_embeddings=64)
        code, out, err = run("ask", "a b c d e f g " * 20, "-m", model)
        assert (code, out) == (USAGE, "") and one_line(err, "64")

    def test_a_declared_billion_of_pixels(self, run, model, tmp_path):
        header = struct.pack(">II5B", 40_000, 40_000, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
        (tmp_path / "vast.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
        code, out, err = run("ask", tmp_path / "vast.png", "What?", "-m", model)
        assert (code, out) == (USAGE, "") and one_line(err, "vast.png")

    def test_a_package_that_is_missing_is_named_with_its_command(self, run, model, tmp_path, monkeypatch):
        (tmp_path / "document.pdf").write_bytes(b"%PDF-1.4 and so on")
        monkeypatch.setitem(sys.modules, "pypdfium2", None)
        code, _, err = run("ask", tmp_path / "document.pdf", "What?", "-m", model)
        assert code == FAILED and one_line(err, 'pip install "qvl[pdf]"')

    def test_no_memory(self, run, model, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

        monkeypatch.setattr("qvl.cli.ask.load_assistant", fail)
        code, _, err = run("ask", "What?", "-m", model)
        assert code == FAILED and one_line(err, "not enough memory", "--max-pixels")

    def test_a_folder_without_a_model(self, run, tmp_path):
        code, out, err = run("ask", "What?", "-m", tmp_path)
        assert (code, out) == (FAILED, "") and one_line(err, "config.json")

    def test_a_model_that_is_nowhere(self, run):
        code, _, err = run("ask", "What?", "-m", "/no/such/folder")
        assert code == FAILED and one_line(err, "/no/such/folder")

    def test_truncated_weights(self, run, tmp_path):
        write_checkpoint(tmp_path)
        (weights,) = tmp_path.glob("*.safetensors")
        weights.write_bytes(weights.read_bytes()[:1000])
        code, out, err = run("ask", "What?", "-m", tmp_path)
        assert (code, out) == (FAILED, "") and one_line(err, weights.name)

    def test_debug_shows_the_traceback_and_the_line(self, run):
        for words in (["--debug", "ask", "What?", "-m", "/no"], ["ask", "What?", "-m", "/no", "--debug"]):
            code, _, err = run(*words)
            assert code == FAILED
            assert "Traceback" in err
            assert err.strip().splitlines()[-1].startswith("qvl: ")

    def test_a_bug_is_one_line_too(self, run, monkeypatch):
        monkeypatch.setattr("qvl.cli.common.generation_settings", lambda *_: 1 / 0)
        monkeypatch.setattr("qvl.cli.ask.generation_settings", lambda *_: 1 / 0)
        code, _, err = run("ask", "What?")
        assert code == FAILED and one_line(err, "ZeroDivisionError", "--debug")

    def test_interrupt(self, run, monkeypatch):
        def interrupt(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("qvl.cli.ask.generation_settings", interrupt)
        assert run("ask", "What?") == (INTERRUPTED, "", "")
        monkeypatch.setattr(sys, "stderr", Terminal())
        assert main(["ask", "What?"]) == INTERRUPTED
        assert sys.stderr.getvalue() == "\n"  # the shell's prompt begins a line of its own


class TestInfo:
    def test_without_weights(self, run, tmp_path, media):
        write_checkpoint(tmp_path, weights=False)
        code, out, err = run(
            "info", tmp_path, media / "picture.png", media / "video.mp4", "--json", "--fps", 2
        )
        facts = json.loads(out)
        assert (code, err) == (OK, "")
        assert facts["architecture"]["layers"] == 3
        assert facts["parameters"]["total"] > facts["parameters"]["vision"] > 0
        assert facts["memory_bytes"]["float32"] == 4 * facts["parameters"]["total"]
        assert facts["kv_bytes_per_token"]["bfloat16"] == 2 * 3 * 2 * 8 * 2
        picture, video = facts["media"]
        assert picture["grid"] == [1, picture["resized_height"] // 14, picture["resized_width"] // 14]
        assert picture["tokens"] == picture["grid"][1] * picture["grid"][2] // 4
        assert (video["frames"], video["grid"][0]) == (4, 2)

    def test_the_tokens_are_those_that_a_question_costs(self, run, model, media):
        words = [media / "picture.png", media / "video.mp4"]
        told = json.loads(run("info", model, *words, "--json")[1])["media"]
        paid = json.loads(run("ask", *words, "?", "-m", model, "--max-new-tokens", 1, "--json")[1])
        assert [m["tokens"] for m in told] == [m["tokens"] for m in paid["media"]]

    def test_tables(self, run, model, media):
        code, out, _ = run("info", model, media / "picture.png", media / "video.mp4")
        assert code == OK
        assert "parameters" in out and "video.mp4" in out and "tokens in all" in out

    def test_file_names_are_no_markup(self, run, model, media, tmp_path):
        for name in ("a[red].png", "c:smile:.png"):
            (tmp_path / name).write_bytes((media / "picture.png").read_bytes())
        code, out, _ = run("info", model, *sorted(tmp_path.iterdir()))
        assert code == OK
        assert "a[red].png" in out and "c:smile:.png" in out

    def test_a_narrow_terminal_loses_nothing(self, run, model, media, monkeypatch):
        monkeypatch.setenv("COLUMNS", "40")
        out = run("info", model, media / "picture.png")[1]
        assert "\N{HORIZONTAL ELLIPSIS}" not in out
        assert max(map(len, out.splitlines())) <= 40

    @pytest.mark.parametrize(
        ("size", "total", "layers", "tied", "bfloat16"),
        [
            ("3b", 3_754_622_976, 36, True, 7_509_245_952),
            ("7b", 8_292_166_656, 28, False, 16_584_333_312),
            ("72b", 73_410_777_344, 80, False, 146_821_554_688),
        ],
    )
    def test_the_released_models(self, run, tmp_path, size, total, layers, tied, bfloat16):
        shutil.copy(GOLDEN / "configs" / f"qwen2_5_vl_{size}.json", tmp_path / "config.json")
        code, out, _ = run("info", tmp_path, "--json")
        facts = json.loads(out)
        assert code == OK and facts["parameters"]["total"] == total
        assert (facts["architecture"]["layers"], facts["architecture"]["tied_head"]) == (layers, tied)
        assert facts["memory_bytes"]["bfloat16"] == bfloat16
        assert facts["memory_bytes"]["int4"] < facts["memory_bytes"]["int8"] < bfloat16

    def test_a_checkpoint_of_another_kind(self, run, tmp_path):
        (tmp_path / "config.json").write_text('{"model_type": "bert"}')
        code, _, err = run("info", tmp_path)
        assert code == FAILED and one_line(err, "bert")


class TestChat:
    @pytest.fixture
    def talk(self, run, monkeypatch, model):
        def talk(*lines, options=()):
            monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
            return run("chat", "-m", model, "--max-new-tokens", 3, *options)

        return talk

    def test_answers_on_stdout_remarks_on_stderr(self, talk, media):
        code, out, err = talk("Hi", f"/image {media / 'picture.png'}", "And this?", "/quit", "unread")
        assert code == OK
        assert out.count("\n") >= 2 and "picture.png" not in out
        assert "picture.png: image" in err

    def test_the_end_of_input_leaves(self, talk):
        assert talk("Hi")[0] == OK

    def test_errors_do_not_end_the_conversation(self, talk):
        code, out, err = talk("/image /no/such.png", "/video", "/dance", "Hi")
        assert code == OK and out
        assert [line.startswith("qvl: ") for line in err.strip().splitlines()] == [True] * 3

    def test_a_slash_alone_makes_no_command(self, talk):
        code, out, err = talk("/usr/bin is what?")
        assert (code, err) == (OK, "") and out

    def test_media_of_a_question_that_fails_are_put_away(self, talk, media):
        code, out, err = talk(f"/image {media / 'thin.png'}", "What?", "Hi")
        assert code == OK and out
        assert "200" in err and "bring them again" in err
        assert err.count("200") == 1

    def test_paths_as_terminals_type_them(self, talk, media, tmp_path, monkeypatch):
        (tmp_path / "my cat.png").write_bytes((media / "picture.png").read_bytes())
        monkeypatch.setenv("HOME", str(tmp_path))
        ways = ("~/my\\ cat.png", f"'{tmp_path}/my cat.png'", f"{tmp_path}/my cat.png")
        _, _, err = talk(*(f"/image {way}" for way in ways))
        assert err.count(f"{tmp_path}/my cat.png: image") == 3, err

    def test_help_and_reset(self, talk):
        _, out, err = talk("/help", "/reset")
        assert out == "" and "/video PATH" in err and "forgotten" in err


class TestProgram:
    """The program as a process: start, version, help, pipes."""

    def start(self, *words, **settings):
        environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", **settings.pop("env", {})}
        command = [sys.executable, "-m", "qvl.cli", *map(str, words)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=REPOSITORY, **settings
        )

    def test_version(self):
        import qvl

        assert self.start("--version").stdout == f"qvl {qvl.__version__}\n"

    def test_alone_it_prints_help(self):
        alone, asked = self.start(), self.start("--help")
        assert (alone.returncode, alone.stdout, alone.stderr) == (0, asked.stdout, "")
        assert "ask" in alone.stdout and "Exit codes" in alone.stdout

    def test_help_needs_no_torch(self):
        code = (
            "import sys; from qvl.cli import main; main(['ask', '--help']); sys.exit('torch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0

    def test_help_names_every_command_and_how_it_is_called(self, run):
        for command, usage in (
            ("ask", "[MEDIA]... QUESTION"), ("chat", "[MEDIA]..."), ("info", "MODEL [MEDIA]...")
        ):  # fmt: skip
            code, out, _ = run(command, "--help")
            assert code == OK and f"Usage: qvl {command} [OPTIONS] {usage}" in " ".join(out.split())

    def test_shell_completion(self):
        words = {"_QVL_COMPLETE": "complete_bash", "COMP_WORDS": "qvl a", "COMP_CWORD": "1"}
        script = [sys.executable, "-c", "import sys; from qvl.cli import main; sys.exit(main())"]
        done = subprocess.run(script, capture_output=True, text=True, env={**os.environ, **words})
        assert done.stdout.split() == ["ask"], done.stderr

    def test_streams_that_were_closed(self):
        closed = f"{sys.executable} -m qvl.cli"
        for redirect in (">&-", "2>&-", "<&-"):
            done = subprocess.run(["bash", "-c", f"{closed} --version {redirect}"], capture_output=True)
            assert done.returncode == OK and b"Traceback" not in done.stderr

    def test_a_full_disk(self):
        script = f"{sys.executable} -m qvl.cli --help >/dev/full"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (FAILED, "qvl: No space left on device\n")

    def test_ctrl_c_in_the_middle_of_an_answer(self, tmp_path):
        model = write_checkpoint(tmp_path, max_position_embeddings=32768)
        (tmp_path / "generation_config.json").write_text('{"max_new_tokens": 20000, "do_sample": true}')
        command = [sys.executable, "-m", "qvl.cli", "ask", "Hi", "-m", str(model)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (INTERRUPTED, b"")

    def test_exit_codes_reach_the_shell(self, media):
        missing = self.start("ask", media / "missing.png", "What?")
        assert (missing.returncode, missing.stdout) == (USAGE, "")
        assert len(missing.stderr.splitlines()) == 1

    def test_a_reader_that_goes_away_is_no_error(self):
        script = f"{sys.executable} -m qvl.cli --help | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=REPOSITORY)
        assert done.stderr == ""
        assert int(done.stdout) == BROKEN_PIPE

    def test_ctrl_c_during_the_imports(self):
        code = (
            "import sys, builtins; before = builtins.__import__\n"
            "def interrupted(name, *rest):\n"
            "    if name == 'typer': raise KeyboardInterrupt\n"
            "    return before(name, *rest)\n"
            "from qvl.cli import main; builtins.__import__ = interrupted; sys.exit(main(['--help']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True)
        assert (done.returncode, done.stderr) == (INTERRUPTED, b"")


class TestTerminal:
    """What only a terminal gets: control characters made harmless."""

    ANSWER = "red\x1b]0;owned\x07 \x9b31m\tcell\n"

    def test_an_answer_sends_no_control_characters_to_a_terminal(self, monkeypatch):
        monkeypatch.setattr(sys, "stdout", Terminal())
        write(self.ANSWER)
        assert sys.stdout.getvalue() == "red\N{REPLACEMENT CHARACTER}]0;owned" + (
            "\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}31m\tcell\n"
        )

    def test_a_file_gets_what_the_model_said(self, capsys):
        write(self.ANSWER)
        assert capsys.readouterr().out == self.ANSWER


class TestDocumentation:
    """docs/cli.md names what the program has."""

    PAGE = (REPOSITORY / "docs" / "cli.md").read_text(encoding="utf-8")

    def test_every_option(self):
        commands = typer.main.get_command(app).commands
        assert set(commands) == {"ask", "chat", "info", "quantize", "serve", "train", "merge", "eval"}
        elsewhere = {"serve": "serving.md", "train": "training.md", "eval": "evaluation.md"}
        for name, command in commands.items():
            options = {name for option in command.params for name in option.opts if name.startswith("-")}
            assert "--debug" in options
            assert ("--max-pixels" in options) == (name != "merge")
            assert ("--fps" in options) == (name not in {"quantize", "serve", "merge"})
            if name in elsewhere:  # whose many options have a page, and serving and training tests of it
                page = (REPOSITORY / "docs" / elsewhere[name]).read_text(encoding="utf-8")
                assert f"({elsewhere[name]})" in self.PAGE
                if name == "eval":
                    assert all(option in page for option in options - {"--help", "--debug"}), options
            else:
                assert all(f"`{name}`" in self.PAGE for name in options - {"--help"}), options

    def test_every_exit_code(self):
        codes = [int(code) for code in re.findall(r"^\| (\d+) \|", self.PAGE, re.MULTILINE)]
        assert codes == [OK, FAILED, USAGE, INTERRUPTED, BROKEN_PIPE, 128 + signal.SIGTERM]

    def test_every_command_of_a_conversation(self):
        commands = re.findall(r"^(/\w+)", HELP, re.MULTILINE)
        assert len(commands) == 5 and all(f"`{command}" in self.PAGE for command in commands)

    def test_every_entry_of_json(self, run, model, media):
        asked = run("ask", media / "video.mp4", "?", "-m", model, "--max-new-tokens", 1, "--json")[1]
        told = run("info", model, media / "video.mp4", "--json")[1]
        answer, facts = json.loads(asked), json.loads(told)
        assert all(f'"{name}"' in self.PAGE for name in {**answer, **answer["tokens"], **answer["seconds"]})
        assert all(f"`{name}`" in self.PAGE for name in facts)
        assert set(facts["media"][0]) - set(answer["media"][0]) == {"frames", "sampled_fps"}
