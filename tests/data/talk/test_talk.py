"""The corpus talk: answers follow from the labels of the media, guessing is worth what talk.json says, and no handwriting and no
voice is in two splits."""

import json
import shutil
from collections import Counter, defaultdict

import pytest
import soundfile

from imp_ds.data import digits, talk
from imp_ds.errors import UserError

SPLITS = ("train", "validation", "test")
TAGS = {"images": "<image>", "videos": "<video>", "audios": "<audio>"}
WORDS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen"
NUMBER = {word: number for number, word in enumerate([*WORDS.split(), "nineteen"])}
NAMED = {number: word for word, number in NUMBER.items()}
# rows of (train, validation, test) at scale 0.03: a round of all (question, digit), or 0.03 of the whole in rounds.
# Image questions: 0.03 * 4000 = 120 = 3 rounds of 4 * 10, 0.03 * 520 = 16 -> 1 round. Videos 0.03 * 4000 -> 1 round of 4 * 40.
# Questions spoken: 0.03 * 3000 = 90 -> 80 = 4 rounds of 20 wordings; several digits: 0.03 * 2400 = 72, 0.03 * 480 = 14.4 -> 15.
COUNTS = {
    "image_question": (120, 40, 40), "video_question": (160, 160, 160), "speech_question": (100, 50, 50),
    "spoken_question_image": (120, 40, 40), "spoken_question_video": (160, 160, 160), "digit_sum": (100, 100, 100),
    "digit_agreement": (120, 20, 20), "follow_up": (600, 600, 600), "several_digits": (72, 15, 15), "transcript": (80, 20, 20),
}  # fmt: skip


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(corpus, task: str, split: str) -> list[dict]:
    return lines(corpus / talk.splits_of(task)[split])


@pytest.fixture(scope="module")
def known(talk_corpus) -> dict[str, dict]:
    """What each file of media shows, by its name in the rows, as the metadata of its folder has it."""
    found = {}
    for folder in ("images", "films", "speech", "questions", "several"):
        for split in SPLITS:
            for row in lines(talk_corpus / folder / split / "metadata.jsonl"):
                found[f"{folder}/{split}/{row['file_name']}"] = row
    return found


def test_counts(talk_corpus):
    facts = json.loads((talk_corpus / "talk.json").read_text())
    assert set(facts) == set(talk.NAMES) == {*COUNTS, "arithmetic", "description"}
    for task, fact in facts.items():
        assert fact["rows"] == {split: len(rows(talk_corpus, task, split)) for split in SPLITS}
        if task in COUNTS:
            assert tuple(fact["rows"].values()) == COUNTS[task]
    # 100 sums in 6 wordings, 55 differences in 4, 90 pairs in 5 + 5 + 3, parity of 20 in 6, 19 and 19 neighbours in 7 and 7
    assert sum(facts["arithmetic"]["rows"].values()) == 600 + 220 + 1170 + 120 + 133 + 133


def test_every_row_names_its_media_in_order_and_turns_alternate(talk_corpus, known):
    for task in talk.NAMES:
        keys = Counter()
        for split in SPLITS:
            for row in rows(talk_corpus, task, split):
                keys[row["key"]] += 1
                assert [message["role"] for message in row["messages"]] == ["user", "assistant"] * (len(row["messages"]) // 2)
                contents = " ".join(message["content"] for message in row["messages"][::2])
                assert {column: contents.count(tag) for column, tag in TAGS.items()} == {c: len(row.get(c, [])) for c in TAGS}
                named = [name for column in TAGS for name in row.get(column, [])]
                assert all(f"/{split}/" in name and name in known and (talk_corpus / name).is_file() for name in named)
        assert set(keys.values()) == {1}


def test_splits_share_no_handwriting_and_no_voice(known):
    drawings, variants = defaultdict(set), defaultdict(set)
    for name, row in known.items():
        split = name.split("/")[1]
        if "drawing" in row:
            drawings[split].add(row["drawing"])
        if "voice" in row:
            variants[split].add(row["voice"].split("+")[1])
    for found in (drawings, variants):
        assert len(set.union(*found.values())) == sum(map(len, found.values())) > 0


def test_media_are_those_of_the_corpus_digits(talk_corpus, digits_corpus):
    ours, theirs = (json.loads((root / "manifest.json").read_text())["files"] for root in (talk_corpus, digits_corpus))
    shared = {name for name in theirs if name.split("/")[0] in ("images", "films", "speech")}
    assert len(shared) == 50 + 160 + 120 + 9 and {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def answer(text: str, row: dict, known: dict) -> str:
    """What is right, by the words of the question and the labels of the media."""
    image = next((known[name]["label"] for name in row.get("images", [])), None)
    video = next((known[name] for name in row.get("videos", [])), None)
    heard = next((known[name]["label"] for name in row.get("audios", []) if "label" in known[name]), None)
    seen = image if image is not None else video and video["digit"]
    if any(word in text for word in ("sum", "make", "two digits.")):
        return NAMED[seen + heard]
    if any(word in text for word in ("same", "agree", "equal", "the written one")):
        return "yes" if seen == heard else "no"
    if any(word in text for word in ("way", "where")):
        return video["direction"]
    digit = heard if seen is None else seen
    if "even" in text:
        return "yes" if digit in (0, 2, 4, 6, 8) else "no"
    if "four" in text:
        return "yes" if digit in (5, 6, 7, 8, 9) else "no"
    if any(word in text for word in ("next", "more", "add one", "follows")):
        return NAMED[digit + 1]
    return NAMED[digit]


@pytest.mark.parametrize("task", ["image_question", "video_question", "speech_question", "digit_sum", "digit_agreement"])
def test_answers_to_written_questions_follow_from_the_labels(task, talk_corpus, known):
    for split in SPLITS:
        for row in rows(talk_corpus, task, split):
            question, reply = (message["content"] for message in row["messages"])
            assert reply == answer(question, row, known), row


@pytest.mark.parametrize("task", ["spoken_question_image", "spoken_question_video"])
def test_answers_to_spoken_questions_follow_from_what_is_spoken(task, talk_corpus, known):
    asked = Counter()
    for row in rows(talk_corpus, task, "train"):
        question, reply = (message["content"] for message in row["messages"])
        assert question in ("<image><audio>", "<video><audio>")
        spoken = known[row["audios"][0]]["text"]
        asked[spoken] += 1
        assert reply == answer(spoken, row, known), row
    assert len(asked) == 16  # four wordings of each of four kinds


def test_follow_ups_ask_of_the_last_medium_and_of_both(talk_corpus, known):
    turns = Counter()
    for row in rows(talk_corpus, "follow_up", "test"):
        contents = [message["content"] for message in row["messages"]]
        turns[len(contents) // 2] += 1
        for question, reply in zip(contents[::2], contents[1::2]):
            both = row if "sum" in row["kind"] else {"audios": row["audios"]} if "<audio>" in question else row
            if question == contents[0]:
                both = {column: names for column, names in row.items() if column != "audios"}
            assert reply == answer(question, both, known), row
    assert turns == {2: 500, 3: 100}


def test_several_digits_and_transcripts_are_what_is_spoken(talk_corpus, known):
    for row in rows(talk_corpus, "several_digits", "train"):
        spoken, reply = known[row["audios"][0]]["digits"], row["messages"][-1]["content"]
        assert [NUMBER[word] for word in reply.split()] == spoken and 2 <= len(spoken) <= 4
    for row in rows(talk_corpus, "transcript", "test"):
        assert row["messages"][-1]["content"] == known[row["audios"][0]]["text"]
    for name, row in known.items():
        if name.startswith("questions/"):
            assert row["seconds"] == pytest.approx(soundfile.info(talk_corpus / name).duration)
            assert 0.4 < row["seconds"] <= 1.28


def test_guessing_is_worth_what_chance_says(talk_corpus):
    facts = json.loads((talk_corpus / "talk.json").read_text())
    # which and next: one of ten; even and larger: one of two. (0.1 + 0.5 + 0.5 + 0.1) / 4
    assert facts["image_question"]["chance"] == pytest.approx(0.3)
    assert facts["image_question"]["chance_by_kind"] == pytest.approx({"which": 0.1, "even": 0.5, "larger": 0.5, "next": 0.1})
    assert facts["video_question"]["chance"] == pytest.approx((0.1 + 0.5 + 0.5 + 0.25) / 4)
    assert facts["speech_question"]["chance"] == pytest.approx((0.1 + 0.5 + 0.5 + 0.1 + 0.1) / 5)
    # who hears no question can say but one thing: yes, which is right in half of two kinds of four
    assert facts["spoken_question_image"]["chance"] == facts["spoken_question_video"]["chance"] == pytest.approx(0.25)
    assert facts["digit_agreement"]["chance"] == pytest.approx(0.5)
    # "nine" is the sum of 10 of 100 pairs, no other number of more
    assert facts["digit_sum"]["chance"] == pytest.approx(0.1)
    # after parity 2 of 10 (one of each five), after parity and size 4 of 10 (one of each of four groups), three of ten, one half
    expected = {"even, which": 0.2, "even, larger, which": 0.4, "which, spoken": 0.1, "which, sum": 0.1, "direction, which": 0.1}
    assert facts["follow_up"]["chance_by_kind"] == pytest.approx(expected | {"which, larger": 0.5})
    assert facts["transcript"]["chance"] == pytest.approx(1 / 20) and facts["transcript"]["metric"] == "wer"
    assert facts["arithmetic"]["chance"] is None


def test_arithmetic_is_right_and_no_question_is_in_two_splits(talk_corpus):
    asked = Counter()
    for split in SPLITS:
        for row in rows(talk_corpus, "arithmetic", split):
            question, reply = (message["content"] for message in row["messages"])
            asked[question] += 1
            numbers = [NUMBER[word] for word in question.rstrip("?.").replace(",", "").split() if word in NUMBER]
            if row["kind"] == "sum":
                assert NUMBER[reply] == sum(numbers)
            elif row["kind"] == "difference":
                assert NUMBER[reply] == numbers[0] - numbers[1]
            elif row["kind"] in ("more", "less"):
                assert (reply == "yes") == ((numbers[0] > numbers[1]) == (row["kind"] == "more"))
            elif row["kind"] == "larger":
                assert NUMBER[reply] == max(numbers)
            elif row["kind"] == "even":
                assert (reply == "yes") == (numbers[0] % 2 == 0)
            else:  # "what is one more than three", "add one to three": the number asked about comes last
                assert NUMBER[reply] == numbers[-1] + (1 if row["kind"] == "next" else -1)
    assert set(asked.values()) == {1}


def test_descriptions_say_what_is_asked_of_them(talk_corpus):
    replies = Counter()
    for row in rows(talk_corpus, "description", "train"):
        facts, question = row["messages"][0]["content"].split("\n")
        numbers = [NUMBER[word] for word in facts.replace(".", "").split() if word in NUMBER]
        reply = row["messages"][1]["content"]
        if row["kind"] == "several":
            assert reply.split() == [NAMED[number] for number in numbers]
        elif row["kind"] == "direction":
            assert facts.rstrip(".").split()[-1] == reply
        else:
            media = {"images": ["seen"], "audios": ["heard"]} if len(numbers) == 2 else {"images": ["seen"]}
            assert reply == answer(question, media, {"seen": {"label": numbers[0]}, "heard": {"label": numbers[-1]}})
        replies[row["kind"], reply] += 1
    assert 0.7 < replies["agree", "yes"] / replies["agree", "no"] < 1.4


def test_the_same_seed_gives_the_same_conversations_and_another_seed_others(talk_corpus, tmp_path):
    assert talk.build(tmp_path / "again", scale=0.03)
    first, second = (json.loads((root / "manifest.json").read_text()) for root in (talk_corpus, tmp_path / "again"))
    assert first == second and first["corpus"] == "talk"
    assert talk.build(tmp_path / "again", scale=0.03) is False
    with pytest.raises(UserError, match="another talk corpus"):
        talk.build(tmp_path / "again", seed=1, scale=0.03)


def test_one_corpus_is_not_taken_for_the_other(talk_corpus, digits_corpus, tmp_path):
    with pytest.raises(UserError, match="holds another corpus(.|\n)*the corpus talk(.|\n)*the corpus digits"):
        digits.verify(talk_corpus)
    with pytest.raises(UserError, match="holds another corpus"):
        talk.build(digits_corpus, scale=0.03)
    copy = shutil.copytree(talk_corpus, tmp_path / "copy")
    (copy / "digit_sum.train.jsonl").unlink()
    with pytest.raises(UserError, match=r"digit_sum.train.jsonl \(missing\)(.|\n)*imp_ds corpus talk"):
        talk.verify(copy)
