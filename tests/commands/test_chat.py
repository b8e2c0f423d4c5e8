"""`imp_ds chat`: one question about files, a conversation line by line, and one clear message for what cannot be asked."""

import io
import re
import sys

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from helpers.talking import export_talking
from helpers.tunable import digits_run, export_untrained
from imp_ds.commands.chat_command import Sampling, chat
from imp_ds.commands.predict import predict
from imp_ds.errors import UserError

SHORT = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_talking(tmp_path_factory.mktemp("chat"))


def expected(model, processor, *turns) -> str:
    """Greedy generation after turns, each a list of parts, of the user and the assistant in turn."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": parts} for place, parts in enumerate(turns)]
    inputs = processor.apply_chat_template(
        [messages], tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs={"return_tensors": "pt"}
    )
    with torch.no_grad():
        ids = model.uni_moe.generate(**inputs, do_sample=False, max_new_tokens=6)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def test_a_question_about_an_image_and_a_recording(exported, capsys):
    folder, model, processor = exported
    root = folder.parent
    answers = chat(folder, "which digit is this?", [("image", root / "a.png"), ("audio", root / "a.wav")], SHORT)
    image = {"type": "image", "image": np.asarray(Image.open(root / "a.png"))}
    audio = {"type": "audio", "audio": soundfile.read(root / "a.wav", dtype="float32")[0]}
    assert answers == [expected(model, processor, [image, audio, text("which digit is this?")])]
    assert capsys.readouterr().out.split() == answers[0].split()  # written as it came, and nothing else
    assert answers != chat(folder, "which digit is this?", [("image", root / "a.png"), ("video", root / "a.mp4")], SHORT)


def test_tags_in_a_question_place_its_media(exported):
    folder, model, processor = exported
    image = {"type": "image", "image": np.asarray(Image.open(folder.parent / "a.png"))}
    answers = chat(folder, "is this <image> even?", [("image", folder.parent / "a.png")], SHORT)
    assert answers == [expected(model, processor, [text("is this "), image, text(" even?")])]


def test_a_conversation_line_by_line(exported, monkeypatch, capsys):
    folder, model, processor = exported
    root = folder.parent
    lines = f"which digit is this?\nis it even?\n/new\n/image {root / 'a.png'}\nwhat comes next?\n\nnot read"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    answers = chat(folder, None, [("image", root / "a.png")], SHORT)
    image = {"type": "image", "image": np.asarray(Image.open(root / "a.png"))}
    first = [image, text("which digit is this?")]
    assert answers == [
        expected(model, processor, first),
        expected(model, processor, first, [text(answers[0])], [text("is it even?")]),
        expected(model, processor, [image, text("what comes next?")]),
    ]


def test_on_a_terminal_another_line_may_be_tried(exported, monkeypatch, capsys):
    folder, model, processor = exported
    terminal = io.StringIO("/image nowhere.png\n/sing\n/video\nis it even?\n")
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", terminal)
    assert chat(folder, None, [], SHORT) == [expected(model, processor, [text("is it even?")])]
    said = capsys.readouterr().out
    assert "there is no such file" in said and "unknown command" in said and "/image FILE" in said
    assert re.search(r"a command without its file\n.*got: +/video\n", said)


def test_drawn_answers_are_those_of_the_seed(exported):
    folder = exported[0]
    drawn = [chat(folder, "is it even?", [], Sampling(8, 2.0, seed)) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_answer_may_be_as_long_as_the_model_has_room_for(exported):
    """128 positions, fewer than the 256 tokens of an answer elsewhere; a prompt that leaves no room is refused."""
    folder, model, processor = exported
    (answer,) = chat(folder, "is it even?", [])
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": [text("is it even?")]}]], tokenize=True, return_dict=True, add_generation_prompt=True,
        processor_kwargs={"return_tensors": "pt"},
    )  # fmt: skip
    with torch.no_grad():
        ids = model.uni_moe.generate(**inputs, do_sample=False, max_length=128)
    length = inputs["input_ids"].shape[1]
    assert answer == processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()
    with pytest.raises(UserError, match="longer than the language model reads(.|\n)*1 for the answer"):
        chat(folder, "which digit is this? " * 30, [])


def test_what_cannot_be_asked_is_one_message(exported, digits_corpus, tmp_path):
    folder = exported[0]
    root = folder.parent
    with pytest.raises(UserError, match="no such file(.|\n)*gone.png"):
        chat(folder, "what?", [("image", tmp_path / "gone.png")], SHORT)
    with pytest.raises(UserError, match="the question cannot be read(.|\n)*a.wav"):
        chat(folder, "what?", [("image", root / "a.wav")], SHORT)
    with pytest.raises(UserError, match="not the folder of an exported model"):
        chat(tmp_path, "what?", [], SHORT)
    with pytest.raises(UserError, match="longer than the language model reads(.|\n)*120 for the answer"):
        chat(folder, "which digit is this, please?", [], Sampling(max_new_tokens=120))
    with pytest.raises(UserError, match="wanted 1 for its <image>, got 0"):
        chat(folder, "what is this: <image>?", [], SHORT)
    with pytest.raises(UserError, match="wanted 1 for its <image>, got 2 in images"):
        chat(folder, "what is this: <image>?", [("image", root / "a.png")] * 2, SHORT)
    with pytest.raises(UserError, match="no task that distinguishes classes(.|\n)*imp_ds chat MODEL"):
        predict(folder, [root / "a.png"])
    imp = export_untrained(digits_run(digits_corpus, num_experts=0, num_hidden_layers=1), tmp_path / "imp")
    with pytest.raises(UserError, match="models of the family imp do not converse"):
        chat(imp, "what?", [], SHORT)
