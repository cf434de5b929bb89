"""The pipeline against a fake model and processor: which inputs it reads, what goes where, what comes out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from qvl.errors import (
    GenerationError,
    InputError,
    InputTypeError,
    PromptError,
    UnknownNameError,
    UnsupportedError,
)
from qvl.generation.config import GenerationConfig
from qvl.pipelines import ImageTextToTextPipeline, ReturnType, pipeline
from qvl.pipelines.device import pick_device
from qvl.processing.features import BatchFeature

PICTURE = Image.new("RGB", (30, 20))
CAT, DOG = Image.new("RGB", (4, 4)), Image.new("RGB", (5, 5))
PROMPT_LENGTH = 3


class FakeProcessor:
    """Every prompt has three tokens; token i is the letter i. Calls are kept."""

    def __init__(self):
        self.calls = []
        self.tokenizer = SimpleNamespace(name="tokenizer")
        self.image_processor = SimpleNamespace(name="image processor")
        self.chat_template = "{% if add_vision_id %}Picture{% endif %}"

    option_names = frozenset({"max_pixels", "padding", "fps"})

    def apply_chat_template(self, conversations, **options):
        self.calls.append(("chat", conversations, options))
        return self._rows(len(conversations))

    def __call__(self, images=None, text=None, **options):
        self.calls.append(("plain", text, images, options))
        return self._rows(len(text))

    def post_process_image_text_to_text(self, sequences, skip_special_tokens=True, **options):
        self.decoding = {"skip_special_tokens": skip_special_tokens, **options}
        return ["".join(chr(97 + int(i)) for i in row) for row in sequences]

    @staticmethod
    def _rows(count):
        return BatchFeature({"input_ids": torch.zeros(count, PROMPT_LENGTH, dtype=torch.int64)})


class FakeModel:
    """Continues row i with the token i, twice."""

    def __init__(self, **config):
        self.generation_config = GenerationConfig(**config)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.calls = []

    def to(self, device):
        self.device = device
        return self

    def generate(self, input_ids, generation_config, **settings):
        self.calls.append((generation_config, settings))
        copies = settings.get("num_return_sequences", 1)
        rows = input_ids.repeat_interleave(copies, 0)
        new = torch.arange(len(rows))[:, None].expand(-1, 2)
        sequences = torch.cat([rows, new], 1)
        return SimpleNamespace(sequences=sequences) if settings.get("return_dict_in_generate") else sequences


@pytest.fixture
def pipe():
    return ImageTextToTextPipeline(FakeModel(), FakeProcessor())


def user(*content):
    return {"role": "user", "content": list(content)}


def text(words):
    return {"type": "text", "text": words}


CHAT = [user({"type": "image", "url": "cat.png"}, text("What?"))]


class TestShapes:
    def test_one_conversation_gives_a_list_of_one_record(self, pipe):
        expected = [{"input_text": CHAT, "generated_text": [*CHAT, {"role": "assistant", "content": "aa"}]}]
        assert pipe(text=CHAT) == expected

    def test_the_conversation_may_come_first(self, pipe):
        assert pipe(CHAT) == pipe(text=CHAT)

    def test_only_the_new_text(self, pipe):
        assert pipe(text=CHAT, return_full_text=False) == [{"input_text": CHAT, "generated_text": "aa"}]
        assert pipe(text=CHAT, return_type=ReturnType.NEW_TEXT)[0]["generated_text"] == "aa"

    def test_token_ids(self, pipe):
        (record,) = pipe(text=CHAT, return_tensors=True)
        assert sorted(record) == ["generated_token_ids", "input_text"]
        assert record["generated_token_ids"].tolist() == [0, 0, 0, 0, 0]

    def test_many_conversations_give_a_list_of_lists(self, pipe):
        answers = pipe(text=[CHAT, CHAT], return_full_text=False)
        assert answers == [[{"input_text": CHAT, "generated_text": "aa"}]] * 2
        assert len(pipe.model.calls) == 2

    def test_many_conversations_in_one_batch(self, pipe):
        answers = pipe(text=[CHAT] * 3, return_full_text=False, batch_size=2)
        assert [a[0]["generated_text"] for a in answers] == ["aa", "bb", "aa"]
        assert [call[2]["padding"] for call in pipe.processor.calls] == [True, False]

    def test_plain_text(self, pipe):
        assert pipe(text="Hi ") == [{"input_text": "Hi ", "generated_text": "Hi aa"}]
        assert pipe("Hi ") == pipe(text="Hi ")
        assert pipe(text=["A", "B"]) == [
            [{"input_text": "A", "generated_text": "Aaa"}],
            [{"input_text": "B", "generated_text": "Baa"}],
        ]

    def test_texts_with_images_are_one_batch_with_a_flat_result(self, pipe):
        answers = pipe(images=[CAT, DOG], text=["A", "B"])
        assert answers == [
            {"input_text": "A", "generated_text": "Aaa"},
            {"input_text": "B", "generated_text": "Bbb"},
        ]
        assert pipe.processor.calls == [
            ("plain", ["A", "B"], [CAT, DOG], {"padding": True, "return_tensors": "pt"})
        ]

    def test_dicts(self, pipe):
        one = {"images": CAT, "text": "A"}
        assert pipe(one) == [{"input_text": "A", "generated_text": "Aaa"}]
        assert pipe([one, one]) == [pipe(one)] * 2
        assert (
            pipe({"images": [CAT], "text": [user({"type": "image"})]})[0]["input_text"][0]["content"][0][
                "image"
            ]
            is CAT
        )

    def test_an_iterator_is_answered_by_an_iterator(self, pipe):
        answers = pipe(one for one in ["A", "B"])
        assert pipe.model.calls == []
        assert [a[0]["generated_text"] for a in answers] == ["Aaa", "Baa"]

    def test_several_returned_sequences_are_several_records(self, pipe):
        answers = pipe(text=[CHAT, CHAT], batch_size=2, return_full_text=False, num_return_sequences=2)
        assert [[r["generated_text"] for r in a] for a in answers] == [["aa", "bb"], ["cc", "dd"]]

    def test_generate_may_return_an_object(self, pipe):
        assert pipe("A", generate_kwargs={"return_dict_in_generate": True})[0]["generated_text"] == "Aaa"


class TestImagesInMessages:
    def test_images_fill_entries_without_a_source_in_order(self, pipe):
        chat = [user({"type": "image"}, {"type": "image", "path": "x.png"}, {"type": "image"}, text("?"))]
        (record,) = pipe(images=[CAT, DOG], text=chat)
        content = record["input_text"][0]["content"]
        assert content[0] == {"type": "image", "image": CAT}
        assert content[1] == {"type": "image", "path": "x.png"}
        assert content[2]["image"] is DOG

    def test_the_callers_messages_stay_as_they_were(self, pipe):
        chat = [user({"type": "image"}, text("?"))]
        pipe(images=CAT, text=chat)
        assert chat == [user({"type": "image"}, text("?"))]

    def test_images_for_each_conversation(self, pipe):
        chat = [user({"type": "image"})]
        answers = pipe(images=[CAT, [DOG]], text=[chat, chat])
        assert [a[0]["input_text"][0]["content"][0]["image"] for a in answers] == [CAT, DOG]

    def test_openai_entries_become_pictures(self, pipe):
        (record,) = pipe(text=[user({"type": "image_url", "image_url": {"url": "u"}})])
        assert record["input_text"][0]["content"] == [{"type": "image", "image": "u"}]

    @pytest.mark.parametrize("images", [[], [CAT, DOG]])
    def test_numbers_that_differ(self, pipe, images):
        with pytest.raises(PromptError, match="image"):
            pipe(images=images, text=[user({"type": "image"})])


class TestContinuing:
    def test_a_last_message_of_the_assistant_is_continued(self, pipe):
        chat = [*CHAT, {"role": "assistant", "content": [text("There is")]}]
        (record,) = pipe(text=chat)
        assert record["generated_text"] == [*CHAT, {"role": "assistant", "content": [text("There isaa")]}]
        options = pipe.processor.calls[0][2]
        assert (options["continue_final_message"], options["add_generation_prompt"]) == (True, False)

    def test_a_string_message_is_continued_too(self, pipe):
        chat = [*CHAT, {"role": "assistant", "content": "There is"}]
        assert pipe(text=chat)[0]["generated_text"][-1] == {"role": "assistant", "content": "There isaa"}

    def test_unless_told_otherwise(self, pipe):
        chat = [*CHAT, {"role": "assistant", "content": "There is"}]
        answer = pipe(text=chat, continue_final_message=False)[0]["generated_text"]
        assert answer == [*chat, {"role": "assistant", "content": "aa"}]

    def test_continued_and_new_messages_do_not_share_a_batch(self, pipe):
        chat = [*CHAT, {"role": "assistant", "content": "There is"}]
        pipe(text=[CHAT, chat], batch_size=8)
        assert [call[2]["continue_final_message"] for call in pipe.processor.calls] == [False, True]


class TestSettings:
    def test_generation_settings_reach_generate(self, pipe):
        pipe("A", max_new_tokens=7, do_sample=True, generate_kwargs={"top_k": 3})
        assert pipe.model.calls[0][1] == {"max_new_tokens": 7, "do_sample": True, "top_k": 3}

    def test_other_settings_reach_the_processor(self, pipe):
        pipe(CHAT, max_pixels=784)
        assert pipe.processor.calls[0][2]["max_pixels"] == 784

    def test_other_arguments_of_generate_reach_it(self, pipe):
        streamer = object()
        pipe(CHAT, streamer=streamer, logits_processor=[], num_beam_groups=2)
        assert pipe.model.calls[0][1] == {"streamer": streamer, "logits_processor": [], "num_beam_groups": 2}

    def test_what_the_template_reads_reaches_it(self, pipe):
        pipe(CHAT, add_vision_id=True, fps=2.0)
        options = pipe.processor.calls[0][2]
        assert (options["add_vision_id"], options["fps"]) == (True, 2.0)

    def test_a_name_that_nobody_reads_is_named_with_the_nearest_one(self, pipe):
        with pytest.raises(InputTypeError, match="max_new_token; did you mean max_new_tokens"):
            pipe(CHAT, max_new_token=3)
        with pytest.raises(InputTypeError, match=r"colour$"):
            ImageTextToTextPipeline(FakeModel(), FakeProcessor(), colour="red")

    def test_decoding_settings(self, pipe):
        pipe("A", skip_special_tokens=False, clean_up_tokenization_spaces=True)
        assert pipe.processor.decoding == {"skip_special_tokens": False, "clean_up_tokenization_spaces": True}

    def test_stop_sequence(self, pipe):
        pipe("A", stop_sequence="\n\n")
        assert pipe.model.calls[0][1] == {"stop_strings": ["\n\n"], "tokenizer": pipe.tokenizer}

    @pytest.mark.parametrize(
        ("config", "settings", "expected"),
        [
            ({}, {}, 256),
            ({"max_new_tokens": 9}, {}, 9),
            ({"max_length": 50}, {}, None),
            ({}, {"generate_kwargs": {"max_length": 40}}, None),
        ],
    )
    def test_the_length_when_the_call_says_none(self, config, settings, expected):
        pipe = ImageTextToTextPipeline(FakeModel(**config), FakeProcessor())
        pipe("A", **settings)
        assert pipe.model.calls[0][0].max_new_tokens == expected

    def test_a_generation_config_of_the_caller_is_used_as_it_is(self, pipe):
        own = GenerationConfig(max_new_tokens=3)
        pipe("A", generate_kwargs={"generation_config": own})
        assert pipe.model.calls[0] == (own, {})

    def test_the_callers_generate_kwargs_stay_as_they_were(self, pipe):
        given = {"top_k": 3}
        pipe("A", max_new_tokens=5, generate_kwargs=given)
        assert given == {"top_k": 3}

    def test_settings_of_the_pipeline_hold_unless_the_call_says_otherwise(self):
        pipe = ImageTextToTextPipeline(FakeModel(), FakeProcessor(), max_new_tokens=5, return_full_text=False)
        assert pipe("A")[0]["generated_text"] == "aa"
        pipe("A", max_new_tokens=6)
        assert [call[1]["max_new_tokens"] for call in pipe.model.calls] == [5, 6]

    def test_pictures_named_by_path_are_opened(self, pipe, tmp_path):
        PICTURE.save(tmp_path / "p.png")
        pipe(images=str(tmp_path / "p.png"), text="A", timeout=1.0)
        assert pipe.processor.calls[0][2][0].size == PICTURE.size


class TestErrors:
    @pytest.mark.parametrize(
        ("call", "error"),
        [
            ({}, InputError),
            ({"images": CAT}, InputError),
            ({"images": np.zeros((4, 4, 3), np.uint8)}, InputError),
            ({"text": []}, InputError),
            ({"text": 3}, InputTypeError),
            ({"text": [{"content": "no role"}]}, PromptError),
            ({"text": [3]}, InputTypeError),
            ({"text": [CHAT], "images": [CAT, DOG]}, InputError),
            ({"text": "A", "batch_size": -1}, InputError),
            ({"text": "A", "batch_size": 0}, InputError),
            ({"text": "A", "batch_size": "2"}, InputError),
            ({"text": "A", "max_new_token": 2}, InputTypeError),
            ({"text": CHAT, "tokenize": False}, InputTypeError),
            ({"text": CHAT, "generate_kwargs": 3}, InputTypeError),
            ({"text": CHAT, "return_type": "text"}, InputTypeError),
            ({"text": "A", "return_full_text": True, "return_tensors": True}, InputError),
            ({"text": "A", "max_new_tokens": 2, "generate_kwargs": {"max_new_tokens": 3}}, GenerationError),
        ],
    )
    def test_wrong_calls(self, pipe, call, error):
        with pytest.raises(error):
            pipe(**call)
        assert pipe.model.calls == []

    def test_other_tasks_are_not_offered(self):
        with pytest.raises(UnknownNameError, match="image-text-to-text"):
            pipeline("text-generation")
        with pytest.raises(KeyError):
            pipeline("text-generation")

    @pytest.mark.parametrize(
        "other", [{"feature_extractor": "x"}, {"framework": "tf"}, {"pipeline_class": int}]
    )
    def test_what_transformers_pipeline_has_beside(self, other):
        with pytest.raises(UnsupportedError, match=next(iter(other))):
            pipeline(model="x", **other)

    def test_device_and_device_map(self):
        with pytest.raises(InputError, match="exclude"):
            pipeline(model="x", device=0, device_map="auto")

    def test_a_loaded_model_without_a_processor(self):
        with pytest.raises(InputError, match="processor"):
            pipeline(model=FakeModel())


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without an accelerator")
def test_devices_without_an_accelerator(caplog):
    assert pick_device(-1).type == pick_device("cpu").type == pick_device(torch.device("cpu")).type == "cpu"
    if not torch.backends.mps.is_available():
        assert pick_device(None).type == "cpu"
        assert not caplog.records
        assert pick_device(0).type == "cpu"
        assert "no accelerator" in caplog.text
