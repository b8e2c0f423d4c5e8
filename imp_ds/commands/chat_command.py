"""`imp_ds chat MODEL "QUESTION"`: what an exported model answers, written as it comes; without a question, a conversation."""

import sys
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import ProcessorMixin, TextStreamer

from imp_ds.commands.exported_model import load_model, read_run
from imp_ds.config import RunConfig
from imp_ds.data.decoding import decode
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.train_module import TrainModule
from imp_ds.modalities.media import BadSample, Media
from imp_ds.modalities.messages.spellings import KINDS, read_conversation
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.modalities.modality import Wanted
from imp_ds.modalities.views import Views
from imp_ds.terminal.printable import printable

_HELP = f"{', '.join(f'/{kind} FILE' for kind in KINDS)}: of the next question; /new: begin anew; an empty line: end"


class Sampling(NamedTuple):
    """max_new_tokens: None: as many as the model has positions for, 256 at most; temperature 0: the likeliest token each time;
    seed: of what is drawn else."""

    max_new_tokens: int | None = None
    temperature: float = 0.0
    seed: int = 0

    def how(self) -> dict:
        """As `generate` takes it."""
        drawn = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        return drawn if self.max_new_tokens is None else {"max_new_tokens": self.max_new_tokens, **drawn}


def chat(model_path: Path, question: str | None, media: list[tuple[str, Path]], sampling: Sampling = Sampling()) -> list[str]:
    """Ask, and write the answers to standard output; returns them.

    Args:
        model_path: a folder that `export` wrote.
        question: what is asked; None: lines of standard input are, until an empty one or the end.
        media: (kind, file) of "image", "video" and "audio", of the (first) question: where it has their tags, or before it.

    Raises UserError for a folder that is no model, a model that does not converse, and files that cannot be read; on a terminal
    what is wrong with a line of a conversation is written, and another may be tried.
    """
    run = read_run(model_path)
    for _, file in media:
        _check_file(file)
    talk = Talk(run, *load_model(model_path), sampling)
    if question is not None:
        return [talk.ask(question, media)]
    return _converse(talk, media)


class Talk:
    """A conversation with a model. `turns` is what was said so far, decoded."""

    def __init__(self, run: RunConfig, model: TrainModule, processor: ProcessorMixin, sampling: Sampling):
        self._family, self._model, self._processor, self._sampling = family_of(run), model.eval(), processor, sampling
        view = next((task.views.messages for task in run.tasks if task.views.messages is not None), MessagesView())
        self._views = Views(messages=view)
        self._wanted = Wanted(settings=run.data.decoding)
        self.turns: list[dict] = []
        torch.manual_seed(sampling.seed)

    def ask(self, question: str, media: list[tuple[str, Path]]) -> str:
        """Write the answer as it comes; from then on both belong to the conversation. Raises UserError."""
        try:
            raw = _asked(question, media)
            asked = decode({"messages": raw}, self._views, wanted=self._wanted)["messages"]
        except BadSample as error:
            fix = "name other files; <image>, <video> and <audio> in a question stand for one file each"
            raise UserError("the question cannot be read", got=str(error), fix=fix) from None
        streamer = TextStreamer(self._processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        conversation = [*self.turns, *asked]
        answer = self._family.answer(self._model, self._processor, conversation, streamer=streamer, **self._sampling.how())
        self.turns = [*conversation, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
        return answer


def _asked(question: str, media: list[tuple[str, Path]]) -> list[dict]:
    """The question as a turn, its media where it has tags for them, else before it. Raises BadSample where they do not match."""
    if not any(f"<{kind}>" in question for kind in KINDS):
        question = "".join(f"<{kind}>" for kind, _ in media) + question
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": "..."}]
    return read_conversation(turns, "the question", _Files(media))[:1]


class _Files:
    """Files beside a question, as `read_conversation` finds them in a row."""

    def __init__(self, media: list[tuple[str, Path]]):
        self._media = media

    def beside(self, column: str) -> list[Path] | None:
        return [file for kind, file in self._media if column == f"{kind}s"] or None

    def members(self) -> dict:
        return {}

    def media(self, value: Path, name: str) -> Media:
        return Media(str(value), path=value)


def _converse(talk: Talk, media: list[tuple[str, Path]]) -> list[str]:
    answers, is_terminal = [], sys.stdin.isatty()
    if is_terminal:
        print(_HELP)
    while line := _line(is_terminal):
        try:
            command, _, rest = line.partition(" ")
            if command == "/new":
                talk.turns, media = [], []
            elif command[1:] in KINDS and command.startswith("/"):
                if not rest.strip():
                    raise UserError("a command without its file", got=command, allowed=_HELP)
                media = [*media, (command[1:], _check_file(Path(rest.strip())))]
            elif command.startswith("/"):
                raise UserError("unknown command", got=command, allowed=_HELP)
            else:
                answers.append(talk.ask(line, media))
                media = []
        except UserError as error:
            if not is_terminal:
                raise
            print(f"error: {error}")
            media = []
    return answers


def _line(is_terminal: bool) -> str:
    """The next line; "" at the end."""
    try:
        return input("> " if is_terminal else "").strip()
    except EOFError:
        return ""


def _check_file(file: Path) -> Path:
    if not file.is_file():
        raise UserError("there is no such file", got=printable(file), fix="name a file of an image, a video or a recording")
    return file
