"""What a column of captions may hold, and which of its captions can be used."""

import unicodedata

from imp_ds.modalities.media import BadSample, shown
from imp_ds.terminal.printable import is_text


def captions(value, where: str) -> list[str]:
    """The captions of a value that is one or a list of them; None, blank ones and those without a visible character are passed
    over.

    Raises BadSample("wrong column") for another value, or one that is no Unicode text, and BadSample("no text") when nothing is
    left.
    """
    found = [value] if isinstance(value, str) or value is None else value
    if not isinstance(found, list) or not all(caption is None or isinstance(caption, str) for caption in found):
        raise BadSample("wrong column", f"{where} is neither a caption nor a list of captions: {shown(value)}")
    found = [caption for caption in found if caption and is_visible(caption)]
    if not found:
        raise BadSample("no text", where)
    if not all(map(is_text, found)):
        raise BadSample("wrong column", f"{where} is no Unicode text, but has half of a surrogate pair: {shown(value)}")
    return found


def is_visible(text: str) -> bool:
    """Whether any of its characters is more than a space, a control character, or a format character such as U+200B."""
    return any(not character.isspace() and unicodedata.category(character) not in ("Cc", "Cf") for character in text)


def usable_captions(captions: list[str], wanted) -> list[str]:
    """Those that have a token. Raises BadSample where none has one, and for one that is too long.

    Args:
        wanted: `imp_ds.modalities.modality.Wanted`.
    """
    if (longest := max(map(len, captions))) > wanted.settings.caption_characters:
        raise BadSample("too large", f"a caption of {longest} characters, more than {wanted.settings.caption_characters}")
    if wanted.has_tokens is not None and not all(map(_surely_has_tokens, captions)):
        captions = [caption for caption in captions if _surely_has_tokens(caption) or wanted.has_tokens(caption)]
    if not captions:
        raise BadSample("no text", "captions of which the tokenizer makes no token")
    return captions


def _surely_has_tokens(caption: str) -> bool:
    """What has a letter or a digit is a word to every tokenizer, if an unknown one."""
    return any(map(str.isalnum, caption))
