"""Features of frozen towers, kept on disk: the same loss as from the media, computed once, anew where they are damaged."""

from types import SimpleNamespace

import pytest
import torch

from helpers.chat_run import make_chat_run
from helpers.conversations import conversations, file_of, media_in, write_all
from imp_ds.data.corpus import open_corpus
from imp_ds.data.files.file_cache import FileCache
from imp_ds.data.loading.collation import Collator
from imp_ds.data.loading.step_batches import StepBatches
from imp_ds.data.media_features import FeatureCache
from imp_ds.errors import UserError
from imp_ds.families import family_of
from imp_ds.families.uni_moe import cached_features as module
from imp_ds.modalities.media import Media
from imp_ds.modalities.messages.view import MessagesView
from imp_ds.models.uni_moe.modeling_uni_moe import UniMoeForConditionalGeneration
from imp_ds.train import checkpoint
from imp_ds.train.schedule import build_schedule
from imp_ds.train.start import media_features

MEDIA = sum(
    len({number for turns in conversations() for number in media_in(turns)[kind]}) for kind in ("image", "video", "audio")
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A run, its parts, and the calls of its towers."""
    root = write_all(tmp_path_factory.mktemp("kept"))
    run = make_chat_run(root).override(["data.messages.feature_cache_gb=1"])
    readers, family = open_corpus(run), family_of(run)
    processor = family.processor(run, readers)
    model = family.build(family.config(run, processor), seed=0, ep_size=1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_tower." not in name)
    return SimpleNamespace(run=run, readers=readers, family=family, processor=processor, model=model, root=root)


@pytest.fixture
def calls(monkeypatch):
    """How many media went through a tower, a list of (kind, number); a blank one of each kind in the end tells the shape."""
    found, encode = [], UniMoeForConditionalGeneration.encode_media

    def counted(self, kind, values, positions=None):
        found.append((kind, len(values)))
        return encode(self, kind, values, positions)

    monkeypatch.setattr(UniMoeForConditionalGeneration, "encode_media", counted)
    return found


def features(chat, run=None, readers=None, hashes="the weights"):
    """The run's cache, filled; all parameters of towers have this hash."""
    given = {name: hashes for name, _ in chat.model.named_parameters() if "_tower." in name}
    run, readers = run or chat.run, readers or chat.readers
    return chat.family.media_features(run, chat.model, chat.processor, readers, given, lambda *stage: None)


def batches(chat, kept=None, readers=None):
    collator, schedule = Collator(chat.processor, kept), build_schedule("rotation", chat.run.tasks, 0)
    return StepBatches(chat.run.tasks, schedule, readers or chat.readers, collator, seed=0, window=8, cache_mb=8)


def losses(chat, source):
    return [float(chat.model(source[step]).loss.detach()) for step in range(5)]


def test_losses_are_those_of_the_media(chat, calls):
    kept = features(chat)
    assert sum(number for _, number in calls) == MEDIA + 3 and {kind for kind, _ in calls} == {"image", "video", "audio"}
    calls.clear()
    found = losses(chat, batches(chat, kept))
    assert not calls  # no tower is called, and the batch has no pixels
    assert not {"pixel_values", "input_features"} & batches(chat, kept)[0].inputs["messages"].keys()
    assert found == pytest.approx(losses(chat, batches(chat)), abs=1e-5) and calls


def test_ids_and_labels_do_not_change(chat):
    for step in range(2):
        found, wanted = batches(chat, features(chat))[step], batches(chat)[step]
        for name in ("input_ids", "attention_mask"):
            assert torch.equal(found.inputs["messages"][name], wanted.inputs["messages"][name])
        assert torch.equal(found.targets["labels"], wanted.targets["labels"])


def test_they_are_computed_once_and_anew_for_another_tower(chat, calls):
    features(chat)
    calls.clear()
    features(chat)
    assert calls == [("image", 1), ("video", 1), ("audio", 1)]
    calls.clear()
    features(chat, hashes="other weights")
    assert sum(number for _, number in calls) == MEDIA + 3
    calls.clear()
    frames = chat.run.tasks[0].model_copy(update={"views": chat.run.tasks[0].views.model_copy()})
    frames.views.messages = frames.views.messages.model_copy(update={"frames": 1})
    features(chat, chat.run.model_copy(update={"tasks": [frames]}))
    # one frame instead of two; pictures and audio are as they were
    assert {kind for kind in ("image", "video", "audio") if sum(n for of, n in calls if of == kind) > 1} == {"video"}


def test_damaged_files_are_computed_anew(chat, tmp_path, calls):
    run = chat.run.override([f"data.cache_dir={tmp_path}"])
    kept = features(chat, run)
    wanted = losses(chat, batches(chat, kept))
    files = sorted(path for path in kept.files.folder.glob("??/*") if not path.name.endswith("lock"))
    assert len(files) == MEDIA
    files[0].write_bytes(files[0].read_bytes()[:-8])
    content = bytearray(files[1].read_bytes())
    content[-5] ^= 1
    files[1].write_bytes(bytes(content))
    files[2].write_bytes(b"")
    calls.clear()
    assert losses(chat, batches(chat, features(chat, run))) == pytest.approx(wanted, abs=1e-6)
    assert sum(number for _, number in calls) == 3 + 3


def test_features_that_went_are_missed_in_one_message(chat):
    kept = features(chat, hashes="short-lived")
    for path in kept.files.folder.rglob("*"):
        if path.is_file() and not path.name.endswith("lock"):
            path.unlink()
    found = batches(chat, kept)[0]
    assert isinstance(found, UserError) and "not in their cache" in str(found) and "feature_cache_gb" in str(found)


def test_the_bound_is_kept(chat, tmp_path):
    run = chat.run.override([f"data.cache_dir={tmp_path}", f"data.messages.feature_cache_gb={20_000 / 2**30}"])
    with pytest.raises(UserError, match="do not fit"):
        features(chat, run)
    written = sum(path.stat().st_size for path in (tmp_path / "features").rglob("*") if path.is_file())
    assert 0 < written <= 20_000
    run = chat.run.override([f"data.cache_dir={tmp_path / 'none'}", f"data.messages.feature_cache_gb={100 / 2**30}"])
    with pytest.raises(UserError, match="larger than the cache(.|\n)*raise data.messages.feature_cache_gb"):
        features(chat, run)


def test_broken_media_are_left_out_as_without_a_cache(chat, tmp_path):
    (tmp_path / "corpus").mkdir()
    root = write_all(tmp_path / "corpus")
    (root / "parts" / "train" / "media" / "0.png").write_bytes(b"no picture")
    run = make_chat_run(root).override(["data.messages.feature_cache_gb=1"])
    readers = open_corpus(run)
    kept = features(chat, run, readers)
    rejected = lambda source: [(r.key, r.reason) for step in range(5) for r in source[step].report.rejected]  # noqa: E731
    assert rejected(batches(chat, kept, readers)) == rejected(batches(chat, None, readers)) != []


def test_towers_that_are_trained_cannot_be_kept(chat):
    with pytest.raises(UserError, match="every tower is trained"):
        chat.family.media_features(chat.run, chat.model, chat.processor, chat.readers, {}, lambda *stage: None)
    off = chat.run.override(["data.messages.feature_cache_gb=0"])
    assert chat.family.media_features(off, chat.model, chat.processor, chat.readers, {}, lambda *stage: None) is None


def test_ranks_of_a_node_share_the_rows(chat, monkeypatch, calls):
    for share in range(2):
        monkeypatch.setattr(module, "_share_of_node", lambda share=share: (share, 2))
        features(chat, hashes="shared")
    assert MEDIA <= sum(number for _, number in calls) - 6 < 2 * MEDIA  # a medium of several rows may be computed by both
    monkeypatch.undo()
    kept = features(chat, hashes="shared")
    assert losses(chat, batches(chat, kept)) == pytest.approx(losses(chat, batches(chat)), abs=1e-5)


def test_bfloat16_is_kept_exactly(tmp_path):
    kept = FeatureCache(FileCache(tmp_path, 2**20), {"image": "tower"})
    features_NLS = torch.randn(1, 3, 5).bfloat16()
    media = Media("a.png", data=file_of("image", 1))
    kept.write(kept.key("image", media, MessagesView()), features_NLS)
    assert torch.equal(torch.from_numpy(kept.read("image", media, MessagesView())).bfloat16(), features_NLS)


def test_what_a_run_does_not_train_names_the_features(chat, tmp_path, calls):
    """As training asks for them: the files that hold the frozen weights distinguish them."""
    run = chat.run.override([f"data.cache_dir={tmp_path}"])

    def asked(folder: str):
        frozen = checkpoint.refer_to_frozen(chat.model, tmp_path / folder)
        return media_features(run, SimpleNamespace(model=chat.model), chat.processor, chat.readers, frozen, None)

    kept = asked("first")
    assert sum(number for _, number in calls) == MEDIA + 3 and set(kept.kinds) == {"image", "video", "audio"}
    assert losses(chat, batches(chat, kept)) == pytest.approx(losses(chat, batches(chat)), abs=1e-5)
    calls.clear()
    asked("second")  # another run with the same towers
    assert sum(number for _, number in calls) == 3
    weight = next(parameter for name, parameter in chat.model.named_parameters() if "vision_tower" in name)
    with torch.no_grad():
        weight += 1
    calls.clear()
    asked("third")
    with torch.no_grad():
        weight -= 1
    assert sum(number for _, number in calls) == MEDIA + 3
