"""What a stranger may give a run of Uni-MoE that cannot be: one message each, from the commands themselves."""

import json
import shutil

import pytest
import torch

from helpers.chat_run import PICTURES, make_chat_run
from helpers.conversations import write_all
from imp_ds.commands.check.command import check
from imp_ds.commands.check.request import CheckRequest
from imp_ds.data.corpus import open_corpus
from imp_ds.data.decoding import decode
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.modalities.media import BadSample
from imp_ds.modalities.modality import Wanted
from imp_ds.models.uni_moe import UniMoeForConditionalGeneration
from imp_ds.planning.check_plan import plan_for_check
from imp_ds.train.trainer import train

_PARTS = "{% for part in m.content %}{% if part.type == 'text' %}SAID{% else %}<{{ part.type }}>{% endif %}{% endfor %}"
_LEARNED = "{% generation %}{{ part.text }}{% endgeneration %}"
JOINED = "{% for m in messages %}" + _PARTS.replace("SAID", _LEARNED) + "{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') | int %}{{ raise_exception('roles take turns') }}"
    "{% endif %}{{ m.role }}{% if m.role == 'assistant' %}" + _PARTS.replace("SAID", _LEARNED) + "{% else %}"
    + _PARTS.replace("SAID", "{{ part.text }}") + "{% endif %}{% endfor %}"
)  # fmt: skip
ANSWER = {"role": "assistant", "content": "it is."}
ROWS = {
    "missing": {"messages": [{"role": "user", "content": [{"type": "image", "image": "media/none.png"}]}, ANSWER]},
    "more": {"messages": [{"role": "user", "content": "<image><image>what?"}, ANSWER], "images": ["media/0.png"]},
    "role": {"messages": [{"role": "robot", "content": "what?"}, ANSWER]},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_all(tmp_path_factory.mktemp("wrong"))
    for name, row in ROWS.items():
        folder = root / name / "train"
        shutil.copytree(root / "parts" / "train" / "media", folder / "media")
        (folder / "metadata.jsonl").write_text(3 * (json.dumps(row) + "\n"))
    (root / "texts").mkdir()
    (root / "texts" / "readme.txt").write_text("no model")
    (root / "pictures").mkdir()
    (root / "pictures" / "config.json").write_text(json.dumps(PICTURES))
    templates = {
        "broken": "{% generation %}{{ messages", "unmarked": "{% for m in messages %}{{ m['role'] }}{% endfor %}",
        "other": "{% for m in messages %}{{ m['content'] + '!' }}{% endfor %}",
        "blind": "{% for m in messages %}{{ m.role }}{% generation %}{{ m.content[-1].text }}{% endgeneration %}{% endfor %}",
        "joined": JOINED, "strict": STRICT,
    }  # fmt: skip
    for name, template in templates.items():
        (root / f"{name}.jinja").write_text(template)
    (root / "latin.jinja").write_bytes(b"{# caf\xe9 #}")
    return root


WRONG = {
    "a missing file": ("tasks.chat.source.path=missing", r"cannot be read: missing file\n.*none\.png"),
    "more placeholders than media": (
        "tasks.chat.source.path=more",
        r"media do not match\n.*row 1.*wanted 2 for its <image>, got 1",
    ),
    "an unknown role": ("tasks.chat.source.path=role", r"unknown role\n.*turn 1: 'robot'; known are system, user"),
}


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_rows_of_which_none_can_be_used_end_training_and_check(root, tmp_path, change, message):
    run = make_chat_run(root).override([change])
    with pytest.raises(UserError, match=message):
        train(run, tmp_path / "out")
    with pytest.raises(UserError, match=message):
        check(CheckRequest(run, plan_for_check(run, 1, 1, None), "train", 3, 0, None), None)


SETTINGS = {
    "a context longer than the model": (
        "tasks.chat.views.messages.length=257", r"task chat.*longer than the language model(.|\n)*at most 256(.|\n)*length=256"),
    "no model": ("model.language_model={root}/texts", r"model.language_model cannot be read"),
    "heads of a language model that do not divide": (
        'model.language_model={{"model_type": "llama", "hidden_size": 30, "num_attention_heads": 4}}',
        r"model.language_model is no configuration\n.*hidden size \(30\) is not a multiple"),
    "no such kind of model": ('model.image_tower={{"model_type": "clipp"}}', r"image_tower is no configuration\n.*clipp"),
    "no folder": ("model.language_model={root}/gone", r"model.language_model is not there\n.*gone"),
    "a model of pictures": ("model.language_model={root}/pictures", r"is no causal language model\n.*clip_vision_model"),
    "a language model as a tower": (
        'model.image_tower={{"model_type": "llama"}}', r"image_tower is no encoder of image\n.*llama\n.*CLIP"),
    "a tower of audio for videos": (
        'model.video_tower={{"model_type": "whisper"}}', r"video_tower is no encoder of video\n.*whisper"),
    "a tower of images for audio": (
        "model.audio_tower={root}/pictures", r"audio_tower is no encoder of audio\n.*clip(.|\n)*Whisper, AST"),
    "a pool that is too large": ("model.image_connector.pool=3", r"connector's pool does not divide"),
    "a pool of nothing": ("model.image_connector.pool=0", r"connector's pool does not divide"),
    "heads that do not divide": (
        'model.image_connector={{"kind": "qformer", "heads": 3}}', r"heads do not divide its width\n.* 3\n.*divisor of 16"),
    "a decoder's heads that do not divide": (
        'model.audio_connector={{"kind": "decoder", "heads": 5}}', r"heads do not divide its width\n.* 5\n.*divisor of 16"),
    "a layer that the tower has not": ("model.feature_layer=2", r"feature_layer is no layer of a tower\n.*2\n.*-2 to 1"),
    "a preference of smells": ('model.expert_preferences={{"smell": [0]}}', r"names what is not there\n.*smell"),
    "a preference of an expert too many": (
        'model.expert_preferences={{"image": [2]}}', r"names what is not there\n.*2.*\n.*experts of 0 to 1"),
    "experts in a language model of another kind": (
        'model.language_model={{"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2}}',
        r"of another kind than experts\n.*GPT2MLP"),
    "experts in one without feed-forwards by that name": (
        'model.language_model={{"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}}',
        r"of another kind than experts\n.*opt"),
    "no template": ("model.chat_template={root}/gone.jinja", r"chat template is not there\n.*gone"),
    "a folder as template": ("model.chat_template={root}", r"chat template is not there"),
    "a broken template": ("model.chat_template={root}/broken.jinja", r"template cannot be rendered\n.*broken"),
    "a template of texts alone": ("model.chat_template={root}/other.jinja", r"template cannot be rendered\n.*other"),
    "a template that leaves media out": ("model.chat_template={root}/blind.jinja", r"does not place each image\n.*blind.*usera"),
    "a template that marks all as one": ("model.chat_template={root}/joined.jinja", r"does not mark each answer by itself"),
    "a template without marks": ("model.chat_template={root}/unmarked.jinja", r"does not mark what the assistant says"),
    "a template of another encoding": ("model.chat_template={root}/latin.jinja", r"template is not UTF-8"),
}  # fmt: skip


@pytest.mark.parametrize("change, message", SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_are_refused(root, change, message):
    run = make_chat_run(root).override([change.format(root=root), *(["model.num_experts=2"] if "experts" in message else [])])
    with pytest.raises(UserError, match=message) as found:
        processor = family_of(run).processor(run, open_corpus(run))
        with torch.device("meta"):
            UniMoeForConditionalGeneration(family_of(run).config(run, processor))
    assert "\n  got:" in str(found.value)


def test_media_that_the_model_does_not_read_are_left_out_and_said(root):
    """Their placeholders would stand in the text, and nothing for them."""
    run = make_chat_run(root).override(["model.audio_tower=null"])
    (reader,) = (readers := open_corpus(run))["chat"]
    processor = family_of(run).processor(run, readers)
    wanted = Wanted(conversation_tokens=processor.conversation_tokens)
    reasons = []
    for row in range(4):  # of which 1 and 3 have audio in them
        try:
            reasons.append(decode(reader.read(row), run.tasks[0].views, wanted=wanted) and None)
        except BadSample as bad:
            reasons.append(str(bad))
    assert reasons == [None, "media not read: audio; the model reads image, video"] * 2
    conversation = decode(reader.read(1), run.tasks[0].views)["messages"]
    for asked in (conversation, [conversation]):
        with pytest.raises(UserError, match="does not read this kind of media: audio"):
            processor.apply_chat_template(asked, tokenize=True, return_dict=True)


def test_turns_that_a_template_refuses_are_left_out_and_said(root):
    """Here roles that do not take turns; the conversation before stays."""
    run = make_chat_run(root).override([f"model.chat_template={root}/strict.jinja"])
    processor = family_of(run).processor(run, open_corpus(run))
    said = [{"type": "text", "text": "so it is"}]
    user, assistant = {"role": "user", "content": said}, {"role": "assistant", "content": said}
    assert processor.conversation_tokens([user, assistant, user, assistant]) > 4
    with pytest.raises(BadSample, match="refused by the chat template: roles take turns"):
        processor.conversation_tokens([user, assistant, assistant])


def test_answers_that_follow_each_other_without_a_mark_between_them_are_an_error(root):
    """Whose is the loss of the second? The template of this run says nothing between two answers of the assistant."""
    run = make_chat_run(root)
    processor = family_of(run).processor(run, open_corpus(run))
    processor.chat_template = JOINED
    said = [{"type": "text", "text": "so it is"}]
    with pytest.raises(UserError, match="mark each answer(.|\n)*got:     1 texts(.|\n)*allowed: 2, one for each turn"):
        processor.encode([[{"role": "user", "content": said}, *2 * [{"role": "assistant", "content": said}]]], length=99)
