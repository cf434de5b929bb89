"""Rows of training files: every form becomes the chat format, every bad row says what is wrong with it."""

import json
import pickle

import pytest

from qvl.errors import InputError, RowError
from qvl.processing.rows import RowFile, each_row, parse_row, read_rows
from qvl.processing.rows.objects import placed

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def write(folder, rows, name="rows.jsonl"):
    path = folder / name
    if path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def one(folder, row):
    (found,) = read_rows(write(folder, [row]))
    return found


def reason(folder, row):
    (found,) = each_row(write(folder, [row]))
    assert isinstance(found, RowError), found
    return found.reason


def told(messages, folder):
    """Messages in short: role and what it holds, media as their paths without the folder."""

    def part(item):
        if item["type"] == "text":
            return item["text"]
        source = item[item["type"]]
        return f"[{item['type']} {source}]".replace(f"{folder}/", "")

    return [
        (
            message["role"],
            message["content"] if isinstance(message["content"], str) else [*map(part, message["content"])],
        )
        for message in messages
    ]


PLAIN = [("user", "Hi"), ("assistant", "Hello")]
SEEN = [("user", ["[image a.png]", "Who?"]), ("assistant", "Ann")]
FORMS = {
    "chat": ({"messages": [USER, ANSWER]}, PLAIN),
    "chat with parts": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Who?"}],
                },
                {"role": "assistant", "content": [{"type": "text", "text": "Ann"}]},
            ]
        },
        [("user", ["[image a.png]", "Who?"]), ("assistant", ["Ann"])],
    ),
    "chat with bare parts and a list": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
                {"role": "assistant", "content": "Ann"},
            ],
            "images": ["a.png"],
        },
        SEEN,
    ),
    "parts without a type": (
        {"messages": [{"role": "user", "content": [{"image": "a.png"}, {"text": "Who?"}]}, ANSWER]},
        [("user", ["[image a.png]", "Who?"]), ("assistant", "Hello")],
    ),
    "tags in parts are text": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is <video>?"}]}, ANSWER]},
        [("user", ["What is <video>?"]), ("assistant", "Hello")],
    ),
    "LLaMA-Factory messages": (
        {
            "messages": [
                {"role": "user", "content": "<image>Who?"},
                {"role": "assistant", "content": "Ann"},
            ],
            "images": ["a.png"],
        },
        SEEN,
    ),
    "LLaVA": (
        {
            "id": "0",
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWho?"},
                {"from": "gpt", "value": "Ann"},
            ],
        },
        [("user", ["[image a.png]", "\nWho?"]), ("assistant", "Ann")],
    ),
    "ShareGPT with a system prompt": (
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            "system": "Be kind.",
        },
        [("system", "Be kind."), *PLAIN],
    ),
    "several media in order": (
        {
            "messages": [
                {"role": "user", "content": "<image> or <image>, and <video>?"},
                {"role": "assistant", "content": "All"},
            ],
            "images": ["a.png", "b/c.png"],
            "videos": ["v.mp4"],
        },
        [
            ("user", ["[image a.png]", " or ", "[image b/c.png]", ", and ", "[video v.mp4]", "?"]),
            ("assistant", "All"),
        ],
    ),
    "media with settings": (
        {
            "messages": [{"role": "user", "content": "<image>"}, ANSWER],
            "images": [{"path": None, "image": "a.png", "max_pixels": 50176}],
        },
        [("user", ["[image a.png]"]), ("assistant", "Hello")],
    ),
    "frames of a video": (
        {"messages": [{"role": "user", "content": "<video>"}, ANSWER], "videos": [["1.png", "2.png"]]},
        [("user", ["[video ['1.png', '2.png']]"]), ("assistant", "Hello")],
    ),
    "query and response": (
        {"query": "<image>Who?", "response": "Ann", "images": ["a.png"], "history": [["Hi", "Hello"]]},
        [*PLAIN, *SEEN],
    ),
    "ms-swift conversation": ({"conversation": [{"human": "Hi", "assistant": "Hello"}]}, PLAIN),
    "instruction": (
        {"instruction": "Say", "input": "hi", "output": "Hello", "system": ""},
        [("user", "Say\nhi"), ("assistant", "Hello")],
    ),
    "an answer with no question": ({"messages": [ANSWER]}, [("assistant", "Hello")]),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_the_chat_format(tmp_path, name):
    row, expected = FORMS[name]
    assert told(one(tmp_path, row).messages, tmp_path) == expected


def test_addresses_and_whole_paths_stay_as_they_are(tmp_path):
    sources = ["http://h/a.png", "data:image/png;base64,AAAA", "/abs/a.png", "~/a.png", "A" * 5000]
    row = {"messages": [{"role": "user", "content": "<image>" * 5}, ANSWER], "images": sources}
    (message, _) = one(tmp_path, row).messages
    assert [part["image"] for part in message["content"]] == sources


def test_media_start_at_the_root_that_is_given(tmp_path):
    path = write(tmp_path, [{"messages": [{"role": "user", "content": "<image>"}, ANSWER], "image": "a.png"}])
    (row,) = read_rows(path, media_root="/elsewhere")
    assert row.messages[0]["content"] == [{"type": "image", "image": "/elsewhere/a.png"}]


def test_what_the_conversation_is_not_made_of_is_kept(tmp_path):
    row = one(tmp_path, {"messages": [USER, ANSWER], "task": "greeting", "answer": ["Hello"], "images": []})
    assert row.extras == {"task": "greeting", "answer": ["Hello"]}


def test_tools_and_calls_have_one_form(tmp_path):
    schema = {"name": "clock", "parameters": {}}
    call = {"name": "clock", "arguments": {"zone": "UTC"}}
    rows = [
        {
            "tools": json.dumps([schema]),
            "conversations": [
                {"from": "human", "value": "Time?"},
                {"from": "gpt", "value": "I look."},
                {"from": "function_call", "value": json.dumps(call)},
                {"from": "observation", "value": "12:00"},
                {"from": "gpt", "value": "Noon."},
            ],
        },
        {
            "tools": [{"type": "function", "function": schema}],
            "messages": [
                {"role": "user", "content": "Time?"},
                {
                    "role": "assistant",
                    "content": "I look.",
                    "tool_calls": [
                        {"function": {"name": "clock", "arguments": '{"zone": "UTC"}'}, "type": "function"}
                    ],
                },
                {"role": "tool", "content": "12:00"},
                {"role": "assistant", "content": "Noon."},
            ],
        },
    ]
    first, second = read_rows(write(tmp_path, rows))
    assert first.messages == second.messages
    assert first.messages[1] == {"role": "assistant", "content": "I look.", "tool_calls": [call]}
    assert first.tools == second.tools == [{"type": "function", "function": schema}]


def test_calls_that_follow_each_other_are_one_turn(tmp_path):
    calls = [{"name": name, "arguments": {}} for name in ("a", "b")]
    messages = [USER, *({"role": "tool_call", "content": json.dumps(call)} for call in calls)]
    row = one(tmp_path, {"messages": messages})
    assert row.messages[1:] == [{"role": "assistant", "content": "", "tool_calls": calls}]


BAD = {
    "no JSON": ('{"messages": ', "not valid JSON: Expecting value at character 14"),
    "a number": ("7", "a row must be a JSON object, not a number"),
    "no conversation": (
        {"text": "x", "url": "y"},
        "it has no conversation: expected 'messages' (or 'conversations', 'query' and 'response', "
        "'instruction' and 'output'), found the keys 'text', 'url'",
    ),
    "two conversations": (
        {"messages": [USER], "conversations": [USER]},
        "it has both 'messages' and 'conversations'; leave one of them",
    ),
    "no messages": ({"messages": []}, "'messages' must be a list with at least one message"),
    "a message that is a text": (
        {"messages": ["Hi"]},
        "message 1 is no object with a role and a content",
    ),
    "no role": (
        {"messages": [{"content": "Hi"}]},
        "message 1 needs 'role' and 'content' (or 'from' and 'value'); it has content",
    ),
    "an unknown role": (
        {"messages": [{"role": "narrator", "content": "Hi"}]},
        "message 1 has the role 'narrator'; expected one of system, user, human, assistant, gpt, bot, model, "
        "tool, tool_response, observation, function_call, tool_call",
    ),
    "content is null": (
        {"messages": [{"role": "user", "content": None}]},
        "the content of message 1 is null",
    ),
    "content is a number": (
        {"messages": [USER, {"role": "assistant", "content": 7}]},
        "the content of message 2 must be a text or a list of parts with 'type'",
    ),
    "a part of an unknown type": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.mp3"}]}]},
        "a part is of type 'audio'; expected 'text', 'image', 'image_url', 'video', 'video_url'",
    ),
    "a text part without text": (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "a part of type 'text' has no text",
    ),
    "a tag too many": (
        {"messages": [{"role": "user", "content": "<image><image>?"}, ANSWER], "images": ["a.png"]},
        "its texts have 2 <image> tags, but it lists 1 image; there must be one tag for each",
    ),
    "a picture too many": (
        {"messages": [USER, ANSWER], "images": ["a.png", "b.png"]},
        "its texts have 0 <image> tags, but it lists 2 images; there must be one tag for each",
    ),
    "a tag without any list": (
        {"messages": [{"role": "user", "content": "<video>?"}, ANSWER]},
        "its texts have 1 <video> tag, but it lists 0 videos; there must be one tag for each",
    ),
    "a bare part without a medium": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, ANSWER]},
        "its texts have 1 <image> tag, but it lists 0 images; there must be one tag for each",
    ),
    "two lists": (
        {"messages": [USER], "image": "a.png", "images": ["a.png"]},
        "it has both 'images' and 'image'; leave one of them",
    ),
    "a medium that is a number": (
        {"messages": [{"role": "user", "content": "<image>"}], "images": [7]},
        "'images' must hold paths, not 7",
    ),
    "a medium of no kind": (
        {"messages": [{"role": "user", "content": "<image>"}], "images": [{"file": "a.png"}]},
        "a medium that the row lists has none of image, url, path, base64, image_url: {'file': 'a.png'}",
    ),
    "sound": (
        {"messages": [USER, ANSWER], "audios": ["a.mp3"]},
        "it has sound ('audios'), and this model hears nothing",
    ),
    "two system prompts": (
        {"messages": [{"role": "system", "content": "A"}, USER], "system": "B"},
        "it says two different system prompts: in 'system' and in its first message",
    ),
    "a question without an answer": (
        {"query": "Hi"},
        "a row with 'query' needs the text 'response' too, both as texts",
    ),
    "half an exchange": (
        {"query": "Hi", "response": "Hello", "history": [["Hi"]]},
        "entry 1 of 'history' must be a question and its answer",
    ),
    "half a conversation": (
        {"conversation": [{"human": "Hi"}]},
        "exchange 1 of 'conversation' needs the texts 'human' and 'assistant'",
    ),
    "a call that is no JSON": (
        {"messages": [USER, {"role": "tool_call", "content": "clock()"}]},
        "message 2 calls a tool, but its content is no JSON",
    ),
    "arguments that are no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "a", "arguments": "{"}]}]},
        "the arguments of a tool call of message 1 are no JSON",
    ),
    "a call without a name": (
        {"messages": [{"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
        "a tool call of message 1 has no name",
    ),
    "tools that are no JSON": ({"messages": [USER], "tools": "clock"}, "'tools' is a text that is no JSON"),
    "tools that are no schemas": (
        {"messages": [USER], "tools": ["clock"]},
        "'tools' must be a list of schemas",
    ),
    "a box tag too many": (
        {"messages": [USER, {"role": "assistant", "content": "<bbox><bbox>"}], "objects": {"bbox": [[1, 2]]}},
        "its texts have 2 <bbox> tags, but 'objects' has 1; there must be one tag for each",
    ),
    "a name too many": (
        {"messages": [USER, ANSWER], "objects": {"ref": ["cat"], "bbox": []}},
        "its texts have 0 <ref-object> tags, but 'objects' has 1; there must be one tag for each",
    ),
    "a box of three numbers": (
        {"messages": [{"role": "assistant", "content": "<bbox>"}], "objects": {"bbox": [[1, 2, 3]]}},
        "a box of 'objects' must be 4 numbers, or 2 for a point, not [1, 2, 3]",
    ),
    "an unknown kind of box": (
        {
            "messages": [{"role": "assistant", "content": "<bbox>"}],
            "objects": {"bbox": [[1, 2]], "bbox_type": "x"},
        },
        "'bbox_type' is 'x'; expected one of real, norm1, norm_1, norm1000, norm_1000",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_every_bad_row_says_what_is_wrong(tmp_path, name):
    row, expected = BAD[name]
    assert reason(tmp_path, row) == expected


def test_a_bad_row_is_named_by_file_and_line_and_the_others_are_read(tmp_path):
    path = write(tmp_path, [json.dumps({"messages": [USER]}), "", '{"messages": [', {"messages": [ANSWER]}])
    found = list(each_row(path))
    assert [getattr(row, "line", None) for row in found] == [1, 3, 4]
    assert str(found[1]).startswith(f"{path}, line 3: not valid JSON")
    with pytest.raises(RowError, match=r"rows.jsonl, line 3: not valid JSON"):
        list(read_rows(path))


def test_the_error_of_a_row_comes_back_whole_from_another_process():
    error = pickle.loads(pickle.dumps(RowError("a.jsonl", 3, "broken")))
    assert (str(error), error.line, error.reason) == ("a.jsonl, line 3: broken", 3, "broken")


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lines_are_found_whatever_ends_them(tmp_path, ending):
    rows = [{"messages": [USER, {"role": "assistant", "content": f"é{i}"}]} for i in range(5)]
    text = ending.join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + ending.encode() * 2)
    file = RowFile(tmp_path / "a.jsonl")
    assert [file.value(i) for i in range(len(file))] == rows
    assert [file.line(i) for i in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_is_read_row_by_row_like_lines(tmp_path, indent):
    rows = [{"messages": [USER, {"role": "assistant", "content": f"é\U0001f642{i}"}]} for i in range(4)]
    text = "\n \n" + json.dumps(rows, indent=indent, ensure_ascii=False) + "\n"
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    file = RowFile(tmp_path / "a.json")
    assert [file.value(i) for i in reversed(range(4))] == rows[::-1]
    assert list(map(json.loads, file.raws())) == rows
    lines = text.splitlines()
    for i in range(4):
        assert file.line(i) == 3 if indent is None else lines[file.line(i) - 1].strip() == "{"
    assert parse_row(file, 2).messages[1]["content"] == "é\U0001f6422"


FILES = {
    "missing": (None, "There is no file"),
    "empty": ("", "holds no rows"),
    "only spaces": (" \n\n", "holds no rows"),
    "an empty array": ("[]", "holds no rows"),
    "a broken array": (
        '[{"messages": []},\n{"messages" 1}]',
        "line 2: not valid JSON: Expecting ':' delimiter",
    ),
    "an array without an end": ('[{"messages": []}', "line 1: a comma or the end of the array is missing"),
    "more behind an array": ("[{}]\n{}", "line 1: there is more behind the end of the array"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_rows(tmp_path, name):
    content, expected = FILES[name]
    if content is not None:
        (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=expected):
        RowFile(tmp_path / "a.json")


def test_a_folder_is_no_file_of_rows(tmp_path):
    with pytest.raises(InputError, match="is a folder; name a file of rows"):
        RowFile(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"messages": []}\n{"a": "\xff"}')
    (_, error) = each_row(tmp_path / "a.jsonl")
    assert (error.line, error.reason) == (2, "not UTF-8 text (byte 8 of the line)")


def test_objects_of_both_forms(tmp_path):
    newer = {
        "messages": [
            {"role": "user", "content": "<image>Find the <ref-object>"},
            {"role": "assistant", "content": '{"bbox_2d": <bbox>, "label": "<ref-object>"}<bbox>'},
        ],
        "images": ["a.png"],
        "objects": {"ref": ["cat", "cat"], "bbox": [[1, 2.5, 3, 4], [5, 6]]},
    }
    row = one(tmp_path, newer)
    plain = placed(row.messages, row.objects, lambda box: box.numbers, "numbers")
    assert plain[1]["content"] == '{"bbox_2d": [1, 2.5, 3, 4], "label": "cat"}[5, 6]'
    tokens = placed(row.messages, row.objects, lambda box: box.numbers)
    assert tokens[0]["content"][1]["text"] == "Find the <|object_ref_start|>cat<|object_ref_end|>"
    assert tokens[1]["content"].endswith("<|box_start|>(5,6)<|box_end|>")
    older = {
        "messages": [
            {"role": "user", "content": "<image>Find <ref-object>"},
            {"role": "assistant", "content": "<bbox>"},
        ],
        "images": ["a.png"],
        "objects": json.dumps(
            [{"caption": "red", "bbox": [[1, 2, 3, 4], [5, 6, 7, 8]], "bbox_type": "norm_1000", "image": 0}]
        ),
    }
    row = one(tmp_path, older)
    assert [(box.unit, box.picture) for box in row.objects.boxes[0]] == [("thousandths", 0)] * 2
    assert placed(row.messages, row.objects, lambda box: box.numbers)[1]["content"] == (
        "<|box_start|>(1,2),(3,4)<|box_end|><|box_start|>(5,6),(7,8)<|box_end|>"
    )
