"""The evaluator of answers: against generation one by one, with media, blind and shuffled; the same on any number of ranks; what
it counts, what it keeps, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from helpers.ranks import run_each_size
from helpers.talking import DAMAGED, IMP, SOURCE, VIEWS, make_run, small_model, write_rows
from imp_ds.errors import UserError
from imp_ds.evaluation import build_evaluators, by_name, evaluate, write_lines
from imp_ds.evaluation_record import Evaluation
from imp_ds.families.uni_moe.answering import check_room, prompt_inputs
from imp_ds.modalities.views import Views
from imp_ds.parallel.groups import rank
from imp_ds.tasks import Source
from imp_ds.train.engine.engine import start_process_group

TOKENS = 9
BEFORE = ["seven", "two", "no", "three", "yes", "no", "yes", "no"]  # references until the model's own answers are known
RIGHT = (0, 3, 4, 7)  # rows, counted without the broken one, whose reference is what the model answers


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """(root, rows, model, processor), with references of which four are what the model answers by itself, one by one."""
    root = tmp_path_factory.mktemp("asked")
    rows = write_rows(root, BEFORE)
    model, processor = small_model(make_run(root))
    usable = [row for row in rows if row.get("images") != [DAMAGED]]
    references = [answer_alone(model, processor, root, usable[n]) if n in RIGHT else "wrong" for n in range(8)]
    rows = write_rows(root, references)
    return root, [row for row in rows if row.get("images") != [DAMAGED]], model, processor


def media(root, row: dict) -> list[dict]:
    """The parts of a row's media, images before audio as they stand in its text, read without the project."""
    folder = root / "talk"
    images = [{"type": "image", "image": np.asarray(Image.open(folder / name))} for name in row.get("images", [])]
    audios = [{"type": "audio", "audio": soundfile.read(folder / name, dtype="float32")[0]} for name in row.get("audios", [])]
    return images + audios


def answer_alone(model, processor, root, row: dict, parts: list[dict] | None = None) -> str:
    """Greedy generation for one prompt alone."""
    parts = media(root, row) if parts is None else parts
    prompt = []
    for place, turn in enumerate(row["messages"][:-1]):
        text = {"type": "text", "text": turn["content"].replace("<image>", "").replace("<audio>", "").lstrip("\n")}
        prompt.append({"role": turn["role"], "content": [*parts, text] if place == 0 else [text]})
    inputs = processor.apply_chat_template(
        [prompt], tokenize=True, return_dict=True, add_generation_prompt=True, processor_kwargs={"return_tensors": "pt"}
    )
    with torch.no_grad():
        ids = model.uni_moe.generate(**inputs, do_sample=False, max_new_tokens=TOKENS)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def ask(root, model, processor, batch_size: int = 3, **options):
    run = make_run(root, max_new_tokens=TOKENS, **options)
    (evaluator,) = build_evaluators(run, processor, "validation", batch_size=batch_size)
    return by_name(evaluate(model, [evaluator])), evaluator


def test_each_question_is_asked_with_its_media_blind_and_with_those_of_another(asked):
    root, rows, model, processor = asked
    found, evaluator = ask(root, model, processor)
    lines = evaluator.lines()
    assert [line["reference"] for line in lines] == [row["messages"][-1]["content"] for row in rows]
    assert [line["answer"] for line in lines] == [answer_alone(model, processor, root, row) for row in rows]
    for line, row in zip(lines, rows):
        parts = media(root, row)
        if not parts:
            assert "answer_blind" not in line and "answer_shuffled" not in line
            continue
        blank = [part | {part["type"]: np.zeros_like(part[part["type"]])} for part in parts]
        assert line["answer_blind"] == answer_alone(model, processor, root, row, blank)
        others = [media(root, other) for other in rows if other is not row and len(media(root, other)) == len(parts)]
        assert line["answer_shuffled"] in {answer_alone(model, processor, root, row, other) for other in others}
    # four of the eight references are the model's own answers
    assert found["answers/talk/exact_match"] == len(RIGHT) / 8 and found["left_out/talk"] == 1
    for mode in ("blind", "shuffled"):  # a question without media is asked once, and is right in all three
        right = [line.get(f"answer_{mode}", line["answer"]) == line["reference"] for line in lines]
        assert found[f"answers/talk/exact_match_{mode}"] == sum(right) / 8
    assert found["answers/talk/exact_match_blind"] < 0.5  # the model does see something
    assert all("<image>" in line["prompt"] for line in lines if "answer_blind" in line)


def test_media_are_shuffled_without_leaving_anyone_his_own(asked):
    root, _, _, processor = asked
    (evaluator,) = build_evaluators(make_run(root), processor, "validation")
    after = evaluator.questions._after
    for kinds, group in evaluator.questions.groups.items():
        rows = sorted(question.row for question in group)
        assert sorted(after[row] for row in rows) == rows
        assert len(rows) == 1 or all(after[row] != row for row in rows), kinds
    # 0, 1, 2 and 8 have one image; and 4, which is damaged
    assert sorted(len(group) for group in evaluator.questions.groups.values()) == [1, 3, 5]


def test_word_errors_of_the_same_answers(asked):
    root, rows, model, processor = asked
    found, evaluator = ask(root, model, processor, metric="wer", blind=False, shuffled=False)
    assert set(found) == {"answers/talk/wer", "left_out/talk"}
    # rows whose reference is the answer have no error; each "wrong" is one word, replaced, with the rest put in
    words = [len(line["reference"].split()) for line in evaluator.lines()]
    errors = [max(1, len(line["answer"].split())) for line in evaluator.lines() if line["reference"] == "wrong"]
    assert found["answers/talk/wer"] == pytest.approx(sum(errors) / sum(words))


def test_some_of_the_questions(asked):
    root, _, model, processor = asked
    found, evaluator = ask(root, model, processor, samples=3, blind=False)
    # of nine rows the first, the fourth and the seventh
    assert evaluator.questions.rows == [0, 3, 6] and len(evaluator.lines()) == 3
    # none of the three has media as another has: without a partner nothing is shuffled, but the question without media stays
    assert found["answers/talk/exact_match_shuffled"] == float(
        evaluator.lines()[1]["answer"] == evaluator.lines()[1]["reference"]
    )


def test_an_answer_that_equals_one_of_several_is_right(asked):
    """A table, of whose questions the first has the model's answer as its second reference."""
    root, rows, model, processor = asked
    own = answer_alone(model, processor, root, rows[0])  # its text is "which digit is this?" too
    table = [dict(picture="0.png", answers=["wrong", own]), dict(picture="1.png", answers=["wrong", "no"])]
    (root / "talk" / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    run = make_run(root, max_new_tokens=TOKENS, blind=False, shuffled=False)
    turns = ["<image:picture>which digit is this?", "{answers}"]
    run.evaluations[0].source = Source(path="talk", splits={"validation": "table.jsonl"}, turns=turns)
    (evaluator,) = build_evaluators(run, processor, "validation")
    assert by_name(evaluate(model, [evaluator]))["answers/talk/exact_match"] == 0.5
    line, _ = evaluator.lines()
    assert (line["reference"], line["references"], line["answer"]) == ("wrong", ["wrong", own], own)


def ask_on_ranks(folder, root, ep_size):
    device = start_process_group(60)
    model, processor = small_model(make_run(root, num_experts=4, towers=(IMP, IMP)), ep_size=ep_size)
    found, evaluator = ask(root, model.to(device), processor, batch_size=2, blind=False)
    Path(folder, f"rank{rank()}.json").write_text(json.dumps([found, evaluator.lines()]))


def test_two_ranks_with_half_of_the_experts_each_answer_as_one(tmp_path):
    """Nine rows in groups of 5, 3 and 1: with two rows of each rank at a time the second rank often has fewer, or none. The
    towers have experts too, and the ranks' numbers of images and of chunks of audio differ."""
    write_rows(tmp_path, BEFORE)
    made = lambda name: (tmp_path / name).mkdir() or tmp_path / name  # noqa: E731
    folders = run_each_size(ask_on_ranks, lambda ranks: (str(tmp_path), ranks), made)
    found = [json.loads(file.read_text()) for folder in folders.values() for file in sorted(folder.glob("rank*.json"))]
    assert len(found) == 3 and len(found[0][1]) == 8
    assert all(other == found[0] for other in found[1:])


def test_questions_are_kept_beside_the_results(asked, tmp_path):
    root, _, model, processor = asked
    _, evaluator = ask(root, model, processor)
    assert write_lines(tmp_path / "answers.jsonl", [evaluator]) == 8
    lines = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert lines == [{"evaluation": "talk"} | line for line in evaluator.lines()]
    assert write_lines(tmp_path / "none.jsonl", []) == 0 and not (tmp_path / "none.jsonl").exists()
    shown, pairs = evaluator.examples(2)
    assert [reference for _, reference in pairs] == [line["reference"] for line in lines[:2]] and shown.inputs == {}


def test_what_cannot_be_asked_is_refused(asked):
    root, _, model, processor = asked
    with pytest.raises(UserError, match="names none of the 0 options"):
        ask(root, model, processor, metric="multiple_choice")
    run = make_run(root)
    run.evaluations[0].views = Views()
    with pytest.raises(UserError, match="views.messages is not set"):
        build_evaluators(run, processor, "validation")
    with pytest.raises(ValueError, match="'exact_match', 'multiple_choice', 'wer' or 'captions'"):
        Evaluation(name="x", modality="messages", source=SOURCE, views=VIEWS, evaluator="answers", options={"metric": "bleu"})
    inputs = prompt_inputs(processor, [[{"role": "user", "content": [{"type": "text", "text": "which digit is it?"}]}]])
    length = inputs["input_ids"].shape[1]
    check_room(model, inputs, 128 - length)
    with pytest.raises(UserError, match=f"{length} tokens, and {129 - length} for the answer(.|\n)*128"):
        check_room(model, inputs, 129 - length)
