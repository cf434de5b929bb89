"""The contestants of the benchmarks do the same work: on one tiny checkpoint, each as its worker runs it."""

import io
import json
import subprocess

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import checkpoints, gguf_files, processes, products, readme, sections, work, worker
from benchmarks.checkpoints import TINY, prompt_ids
from benchmarks.peers import PeerUnavailable, load_peer
from benchmarks.process import Contestant, environment
from benchmarks.worker import Tasks

PROMPTS = [prompt_ids(20, seed=i) for i in range(3)]
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory):
    """Where checkpoints are made here, instead of the person's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "WORK", tmp_path_factory.mktemp("benchmarks"))
        yield checkpoints.WORK


@pytest.fixture(scope="module")
def picture(folder):
    path = folder / "photo.png"
    sections.photo().resize((196, 140)).save(path)
    return str(path)


def outputs(who: str, weights: str, picture: str) -> dict[str, object]:
    """What a contestant computes: logits, tokens of three streams, embeddings of a picture."""
    peer = load_peer(who, TINY, weights, ("text", "vision"))
    logits = np.asarray(peer.logits(prompt_ids(40)))
    peer.begin_streams(PROMPTS, STEPS)
    for _ in range(STEPS):
        peer.step()
    peer.begin_picture(picture)
    peer.encode()
    embeddings = np.asarray(peer.embeddings())
    return {"logits": logits, "tokens": peer.streamed(), "embeddings": embeddings, "peer": peer}


@pytest.fixture(scope="module")
def reference(folder, picture):
    pytest.importorskip("transformers")
    return outputs("transformers", "fp32", picture)


def apart(found, expected) -> float:
    """The largest difference as a share of the largest value."""
    assert found.shape == expected.shape
    return float(abs(found - expected).max() / abs(expected).max())


@pytest.mark.oracle
def test_qvl_computes_what_transformers_computes(reference, picture):
    ours = outputs("qvl", "fp32", picture)
    assert ours["tokens"] == reference["tokens"]
    assert [len(tokens) for tokens in ours["tokens"]] == [STEPS + 1] * 3
    assert apart(ours["logits"], reference["logits"]) < 1e-5
    assert apart(ours["embeddings"], reference["embeddings"]) < 1e-5


@pytest.mark.oracle
def test_bf16_is_the_same_checkpoint_rounded(reference, picture):
    for who in ("transformers", "qvl"):
        found = outputs(who, "bf16", picture)
        assert apart(found["logits"], reference["logits"]) < 0.03
        assert apart(found["embeddings"], reference["embeddings"]) < 0.03


@pytest.mark.oracle
def test_llama_cpp_computes_what_transformers_computes(reference, picture):
    """Its own roundings reach the logits at 4e-3 of the largest; a tensor in a wrong place reaches 0.1."""
    pytest.importorskip("llama_cpp", reason="the extra bench is not installed")
    found = outputs("llama.cpp", "F32", picture)
    assert found["tokens"] == reference["tokens"]
    assert apart(found["logits"], reference["logits"]) < 8e-3
    assert apart(found["embeddings"], reference["embeddings"]) < 2e-3


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("weights", "most", "bits"), [("Q8_0", 0.1, 9), ("Q4_0", 0.6, 6), ("Q4_K_M", 0.6, 6)]
)
def test_llama_cpps_own_quantizer_is_used(reference, picture, weights, most, bits):
    pytest.importorskip("llama_cpp", reason="the extra bench is not installed")
    peer = load_peer("llama.cpp", TINY, weights, ("text",))
    assert 1e-3 < apart(np.asarray(peer.logits(prompt_ids(40))), reference["logits"]) < most
    assert peer.decoder_bytes() < bits / 32 * reference["peer"].decoder_bytes()


@pytest.mark.oracle
@pytest.mark.parametrize(("weights", "most", "bits"), [("int8-vision", 0.1, 9), ("int4", 0.6, 6)])
def test_qvls_own_quantizer_is_used(reference, picture, weights, most, bits):
    found = outputs("qvl", weights, picture)
    assert 1e-3 < apart(found["logits"], reference["logits"]) < most
    assert found["peer"].decoder_bytes() < bits / 32 * reference["peer"].decoder_bytes()
    rounded = apart(found["embeddings"], reference["embeddings"])
    assert 1e-3 < rounded < most if "vision" in weights else rounded < 1e-5


@pytest.mark.oracle
def test_operations_are_those_that_torch_counts(reference):
    """Of transformers' tower and decoder. It multiplies a still picture's frame twice, which need not be."""
    peer = reference["peer"]
    side, hidden = 112, TINY.vision_hidden
    patches = (side // 14) ** 2
    pixels = torch.randn(patches, 1176)
    # The counter knows products, and attention that is made of them.
    plain = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
        peer.model.model.visual(pixels, grid_thw=torch.tensor([[1, side // 14, side // 14]]))
    twice = 2.0 * patches * work.PATCH_VALUES * hidden
    assert work.vision(TINY, side, "fp32").operations + twice == pytest.approx(counter.get_total_flops())

    peer.begin_streams(PROMPTS, 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        peer.step()
    counted = work.decode(TINY, 3, 21, 0.0, "fp32").operations
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.oracle
def test_decoder_bytes_count_a_tied_head_once(reference):
    ours = load_peer("qvl", TINY, "fp32", ("text",))
    weights = TINY.layers * work.layer_weights(TINY) + work.head_weights(TINY)
    for peer in (ours, reference["peer"]):
        assert 4 * weights < peer.decoder_bytes() < 4.1 * weights
    assert ours.weight_bytes() > ours.decoder_bytes()


def test_the_files_for_llama_cpp_hold_every_tensor(folder):
    gguf = pytest.importorskip("gguf", reason="the extra bench is not installed")
    source = checkpoints.checkpoint(TINY, "fp32")
    stored = dict(gguf_files.tensors_of(source))
    gguf_files.write_decoder(source, folder / "text.gguf")
    gguf_files.write_vision(source, folder / "vision.gguf")
    text = {t.name: t.data for t in gguf.GGUFReader(folder / "text.gguf").tensors}
    vision = {t.name: t.data for t in gguf.GGUFReader(folder / "vision.gguf").tensors}
    # A block's fused projection becomes three, weight and bias; the patch kernel becomes one for each frame.
    assert len(text) + len(vision) == len(stored) + 4 * TINY.vision_layers + 1
    by_suffix = {name.split("language_model.")[-1].removeprefix("model."): t for name, t in stored.items()}
    assert np.array_equal(text["token_embd.weight"], by_suffix["embed_tokens.weight"].numpy())
    up = next(t for name, t in stored.items() if name.endswith("layers.1.mlp.up_proj.weight"))
    assert np.array_equal(text["blk.1.ffn_up.weight"], up.numpy())
    fused = next(t for name, t in stored.items() if name.endswith("blocks.2.attn.qkv.bias"))
    assert np.array_equal(vision["v.blk.2.attn_k.bias"], fused.chunk(3)[1].numpy())


def test_unlike_window_patterns_are_refused():
    assert gguf_files.window_pattern([7, 15, 23, 31]) == 8
    with pytest.raises(ValueError, match="every n-th block"):
        gguf_files.window_pattern([3, 4])


@pytest.mark.parametrize("way", products.ways(), ids=lambda way: way.name.replace(" ", "-"))
def test_every_way_computes_the_product(way):
    weight_NK = torch.randn(128, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    x_TK = torch.randn(5, 256, generator=torch.Generator().manual_seed(1))
    expected_TN = x_TK @ weight_NK.T
    try:
        found = torch.as_tensor(way.make(weight_NK.to(way.dtype))(x_TK.to(way.dtype))).float()
    except (PeerUnavailable, RuntimeError) as reason:
        pytest.skip(str(reason).splitlines()[0])
    if found.shape != expected_TN.shape:
        found = found.T
    most = {"fp32": 1e-5, "bf16": 0.01, "int8": 0.03, "int4": 0.25}[way.weights]
    assert apart(found.numpy(), expected_TN.numpy()) < most


def test_a_worker_answers_line_by_line():
    class Peer:
        def step(self) -> None: ...

        def begin_streams(self, prompts, room) -> None:
            self.prompts = prompts

        def streamed(self):
            return self.prompts

        def begin_picture(self, path) -> None:
            raise PeerUnavailable("no tower here")

    requests = [
        {"task": "begin_streams", "name": "a", "streams": 2, "context": 3, "room": 1},
        {"task": "steps", "name": "a", "count": 2},
        {"task": "streamed", "name": "a"},
        {"task": "begin_picture", "name": "b", "path": "x.png"},
    ]
    replies: list[dict] = []
    lines = io.StringIO("\n".join(json.dumps(request) for request in requests))
    worker.serve(Tasks(Peer(), {}), iter(lines), replies.append)  # type: ignore[arg-type]
    assert [len(replies[1]["result"]), len(replies[2]["result"])] == [2, 2]
    assert replies[2]["result"][0] == prompt_ids(3, seed=0) != replies[2]["result"][1]
    assert replies[3] == {"unavailable": "no tower here"}


def test_states_do_not_disturb_each_other():
    peer = load_peer("qvl", TINY, "fp32", ("text",))
    tasks = Tasks(peer, {})
    tasks.begin_streams("one", 1, 8, 4)
    tasks.begin_streams("two", 2, 12, 4)
    tasks.steps("one", 2)
    assert [len(t) for t in tasks.streamed("one")] == [3]
    assert [len(t) for t in tasks.streamed("two")] == [1, 1]


def test_a_contestant_without_the_format_says_so():
    pytest.importorskip("transformers")
    with pytest.raises(PeerUnavailable, match="no path for int8"):
        load_peer("transformers", TINY, "int8", ("text",))


def test_a_choice_of_instructions_reaches_every_library():
    chosen = environment("avx2")
    assert chosen["QVL_KERNELS"] == "avx2" and chosen["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert environment()["OMP_NUM_THREADS"] == "2"
    assert str(Contestant("qvl", "int8")) == "qvl int8"


def test_a_half_made_file_is_never_used(folder):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        checkpoints.made_once("thing", fail)
    assert not (folder / "thing").exists()
    assert checkpoints.made_once("thing", lambda path: path.write_text("whole")).read_text() == "whole"


@pytest.mark.oracle
def test_the_first_token_is_the_same_for_all(folder):
    """Of the bundled model, asked about a picture by each contestant in a process of its own."""
    pytest.importorskip("llama_cpp", reason="the extra bench is not installed")
    ours = [*readme.ASK, "--max-new-tokens", "1"]
    answers = [
        subprocess.run(command, capture_output=True, text=True, cwd=readme.ROOT, check=True).stdout.strip()
        for command in (ours, processes.ask_llama())
    ]
    assert answers[0] == answers[1] != ""
