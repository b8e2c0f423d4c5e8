"""The tokenizer: SentencePiece trained on the corpus' captions (Kudo and Richardson, arXiv 1808.06226), held as a Hugging Face
tokenizer.

Byte-pair merges, not the unigram model: on a small corpus of repeated captions the unigram trainer keeps hardly more than
letters (125 tokens for the 113 words of the digits), and captions become twice as long.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.utils import HFValidationError, validate_repo_id
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from imp_ds import foreign_code
from imp_ds.errors import UserError

MASK = "<mask>"
_SENTENCES = 1_000_000  # more captions than this are sampled
_HUB_S = 5.0  # in which the hub has to answer before it is asked for a tokenizer
_ALLOWED = "a folder with a tokenizer, or the name of one on the Hugging Face hub that needs no code of its own"
_LONGEST = 2048  # characters of a caption that are read: a longer text says as much of the language with its beginning


def train_tokenizer(captions: Iterable[str], vocab_size: int, *, seed: int = 0, max_length: int = 256) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of at most `vocab_size` tokens; fewer when the captions have fewer pieces.

    Text is case-folded and NFKC-normalised; id 0 is padding, 1 unknown, 2 stands for a hidden word; nothing marks begin or end,
    as in IMP. The same captions in the same order and the same seed give the same tokenizer. Captions are read one by one, and
    at most a million of them are held.

    Raises:
        UserError: no captions, or a vocabulary smaller than their alphabet; and what reading the captions raises.
    """
    return from_sentencepiece(train_sentencepiece(captions, vocab_size, seed=seed), max_length)


def train_sentencepiece(captions: Iterable[str], vocab_size: int, *, seed: int = 0) -> bytes:
    """The serialized SentencePiece model."""
    import sentencepiece  # a training-time dependency: loading a trained tokenizer does without

    sentences = _Sentences(captions)
    model = io.BytesIO()
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            max_sentence_length=4 * _LONGEST,  # bytes; what is longer would be left out
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            normalization_rule_name="nmt_nfkc_cf",
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=[MASK],
            input_sentence_size=_SENTENCES,
            shuffle_input_sentence=True,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if sentences.error is not None:
            raise sentences.error
        if not sentences.count:
            raise UserError("there are no captions to train a tokenizer on") from error
        raise UserError("SentencePiece cannot train on these captions", got=f"vocab_size={vocab_size}: {error}") from error
    return model.getvalue()


class _Sentences:
    """Captions one by one. `count`: of those that are not empty; `error`: what ended them, of which SentencePiece tells only
    the text."""

    def __init__(self, captions: Iterable[str]):
        self.captions, self.count, self.error = captions, 0, None

    def __iter__(self) -> Iterator[str]:
        try:
            for caption in self.captions:
                if sentence := caption.strip()[:_LONGEST]:
                    self.count += 1
                    yield sentence
        except Exception as error:
            self.error = error
            raise


def from_sentencepiece(model: bytes, max_length: int = 256) -> PreTrainedTokenizerFast:
    """The same segmentation in the `tokenizers` library, which needs no SentencePiece to load."""
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto.FromString(model)
    pieces = [piece.piece for piece in proto.pieces]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    # SentencePiece joins the neighbours whose union comes first in the vocabulary, however the union is cut
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    unknown = pieces[proto.trainer_spec.unk_id]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True))
    spaces = [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap), *spaces])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    names = {"pad_token": pieces[proto.trainer_spec.pad_id], "unk_token": unknown, "mask_token": MASK}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_length, model_input_names=inputs, **names)


def _is_cached(name: str) -> bool:
    """Whether the tokenizer of that name on the hub is on this disk already."""
    try:
        return isinstance(try_to_load_from_cache(name, "tokenizer_config.json"), str)
    except HFValidationError:
        return False


def _check_hub(name: str) -> None:
    """Raise UserError for what is no name of the hub's, and where the hub cannot be reached."""
    try:
        validate_repo_id(name)
        get_session().head(constants.ENDPOINT, timeout=_HUB_S)
        return
    except HFValidationError:
        why = "no name of the hub's"
    except Exception as error:  # of the hub's client, each kind in its own way
        why = f"{constants.ENDPOINT} cannot be reached ({type(error).__name__})"
    got = f"{name}: no such folder, and {why}"
    raise UserError("the tokenizer is not there", got=got, allowed=_ALLOWED, fix="--set data.tokenizer=FOLDER")


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Any Hugging Face tokenizer by name or folder; code that comes with it is not run (`imp_ds.foreign_code`).

    Raises:
        UserError: it cannot be loaded, or has neither a padding nor an end token. At once for what is no folder and cannot be the
            name of one on the hub, and where the hub would be asked and does not answer.
    """
    local = Path(name_or_path).is_dir() or _is_cached(name_or_path)
    if not local:
        _check_hub(name_or_path)
    tokenizer = foreign_code.load(
        AutoTokenizer, name_or_path, "the tokenizer cannot be loaded", allowed=_ALLOWED, local_files_only=local
    )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError("the tokenizer has no padding token", got=name_or_path, fix="add one and save it again")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
