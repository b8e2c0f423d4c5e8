"""Conversations: all that the program asks about them."""

from imp_ds.errors import UserError
from imp_ds.modalities.in_turn import in_turn
from imp_ds.modalities.messages.spellings import KINDS, media_of, read_conversation, text_of
from imp_ds.modalities.messages.turns import columns_of, make_conversation
from imp_ds.modalities.messages.view import MessagesSettings, MessagesView
from imp_ds.modalities.modality import Modality, Preprocessed, register_modality

_CHARACTERS = 4  # of a token, roughly


@register_modality
class Messages(Modality):
    """Conversations of users with an assistant. The media in them are their parts, and no samples of vision or audio."""

    kind = "messages"
    what = "conversations with images, videos and audio in them"
    column = "column of a conversation: a list of turns, or its JSON"
    missing = "no conversation"
    example = "conversations=[messages]"
    made_of = "turns"
    inputs = ("input_ids", "attention_mask")
    part = "conversations"
    has_texts, names_a_file, shows_samples = True, False, True
    beside = ("images", "image", "videos", "video", "audios", "audio")
    measures = ("characters", "images", "videos", "recordings", "tenths_of_a_second")
    View, Settings = MessagesView, MessagesSettings

    def read(self, value, where, row):
        return read_conversation(value, where, row)

    def made_columns(self, templates):
        return columns_of(templates)

    def make(self, templates, where, row):
        return make_conversation(templates, where, row)

    def files(self, raw):
        return [medium for _, medium in media_of(raw)]

    def measure(self, raw):
        facts = self.facts(raw)
        return [len(text_of(raw)), *(facts[name] for name in self.measures[1:4]), round(10 * facts.get("audio seconds", 0))]

    def length(self, measured, part):
        characters, images, videos, recordings, tenths = measured
        chunks, tokens = recordings + int(tenths / 10 / part.chunk_step_seconds), part.media_tokens
        media = {"image": images, "video": videos, "audio": chunks}
        return characters // _CHARACTERS + sum(count * tokens.get(kind, 0) for kind, count in media.items())

    def decode(self, raws, view, rngs, cache, augment, wanted):
        from imp_ds.modalities.messages.decoding import decode_conversation

        return in_turn(lambda raw, rng: decode_conversation(raw, view, rng, cache, wanted), raws, rngs)

    def preprocess(self, samples, view, part, rngs, *, augment, text, empty):
        rows = None if view.pack == 1 else -(-len(samples) // view.pack)
        inputs = dict(part.encode(samples, length=view.length, loss=view.loss, rows=rows))
        targets = {"labels": inputs.pop("labels")}
        return Preprocessed(inputs, targets, padding=1.0 - float(inputs["attention_mask"].mean()))

    def derive_options(self, views):
        raise _of_another_family()

    def embedding(self, config):
        raise _of_another_family()

    def most_tokens(self, config):
        raise _of_another_family()

    def tokens(self, view, config, settings, path):
        return view.length

    def kernels(self, config, tokens, values, value_bytes):
        raise _of_another_family()

    def facts(self, raw):
        from imp_ds.modalities.audio.facts import audio_facts

        media = media_of(raw)
        counts = {f"{kind}s" if kind != "audio" else "recordings": sum(of == kind for of, _ in media) for kind in KINDS}
        seconds = sum(audio_facts(medium).get("audio seconds", 0.0) for kind, medium in media if kind == "audio")
        return {"turns": len(raw)} | counts | ({"audio seconds": seconds} if seconds else {})

    def captions(self, raw):
        return [text_of(raw), *(text_of([{"content": content}]) for turn in raw for content in turn.get("others", []))]

    def parts(self, sample, view):
        from imp_ds.modalities.messages.shown import conversation_parts

        return conversation_parts(sample, view)


def _of_another_family() -> UserError:
    return UserError(
        "models of the family imp read no conversations", got="a view of messages", allowed="model.family = uni_moe",
        fix="take the family uni_moe, or read its parts by views.vision, views.audio and views.text",
    )  # fmt: skip
