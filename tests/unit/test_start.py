"""What the way to the first token must not import: held by name, since times differ between machines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PICTURE = Path(__file__).parents[2] / "examples" / "pictures" / "one_digit.png"
QUESTION = "What number is written here?"

# torch's compiler, and packages that only some media, checkpoints and terminals need
COMPILER = {"torch._dynamo", "torch._inductor", "torch.onnx", "sympy", "networkx"}
OTHERS = {"transformers", "torchao", "accelerate", "huggingface_hub", "scipy", "pandas", "matplotlib"}
MEDIA = {"av", "httpx", "pypdfium2"}
TEXT = {"jinja2", "tokenizers"}
HEAVY = COMPILER | OTHERS | MEDIA

IMPORT = "import qvl"
MODEL = (
    "from qvl import Qwen2_5_VLForConditionalGeneration as Model; model = Model.from_pretrained('qvl/tiny')"
)
PROCESSOR = "from qvl import AutoProcessor; processor = AutoProcessor.from_pretrained('qvl/tiny')"
INPUTS = (
    f"content = [dict(type='image', path={str(PICTURE)!r}), dict(type='text', text={QUESTION!r})]\n"
    "inputs = processor.apply_chat_template([dict(role='user', content=content)], tokenize=True, "
    "add_generation_prompt=True, return_dict=True, return_tensors='pt')"
)
GENERATE = "answer = model.generate(**inputs, max_new_tokens=8)"
ASK = (
    f"import sys; sys.argv = ['qvl', 'ask', {str(PICTURE)!r}, {QUESTION!r}]\n"
    "from qvl.cli import main; assert main() == 0"
)


def imported(*steps: str) -> set[str]:
    """The modules that a fresh process has after ``steps``."""
    code = "\n".join([*steps, "import sys; print(); print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("steps", "unwanted"),
    [
        pytest.param((IMPORT,), {"torch", "numpy", "PIL", "rich", "safetensors"} | TEXT | HEAVY, id="import"),
        pytest.param((MODEL,), {"PIL", "rich"} | TEXT | HEAVY, id="load-the-model"),
        pytest.param((PROCESSOR,), {"jinja2", "rich"} | HEAVY, id="load-the-processor"),
        pytest.param(
            (PROCESSOR, MODEL, INPUTS, GENERATE), {"rich", "PIL.TiffImagePlugin"} | HEAVY, id="first-answer"
        ),
        pytest.param((ASK,), {"rich.progress", "PIL.TiffImagePlugin"} | HEAVY, id="qvl-ask"),
    ],
)
def test_what_is_not_needed_is_not_imported(steps, unwanted):
    assert imported(*steps) & unwanted == set()


def test_the_collector_stands_still_while_torch_is_imported_and_runs_afterwards():
    watch = "import gc, qvl; seen = []; gc.callbacks.append(lambda _, info: seen.append(info['generation']))"
    use = "qvl.BatchFeature; import sys; assert 'torch' in sys.modules"
    imported(watch, use, "assert 2 not in seen and gc.isenabled() and gc.get_freeze_count() == 0")


def test_the_collector_that_a_caller_switched_off_stays_off():
    imported("import gc, qvl; gc.disable(); qvl.BatchFeature; assert not gc.isenabled()")


def test_the_command_line_collects_again_once_the_model_is_there():
    imported(ASK, "import gc; assert gc.isenabled() and gc.get_freeze_count() > 100_000")


def test_a_command_line_inside_another_program_leaves_its_collector_alone():
    run = "import gc; from qvl.cli import main; main(['--version'])"
    imported(run, "assert gc.isenabled() and gc.get_freeze_count() == 0")
