"""An exported folder as a repository of the Hub: what is asked of it, and what is said where that fails."""

from types import SimpleNamespace

import pytest
from huggingface_hub.errors import HfHubHTTPError
from typer.testing import CliRunner

from imp_ds.cli import app
from imp_ds.commands.sharing import hub
from imp_ds.errors import UserError


class FakeHub:
    """In place of HfApi, with its signatures: notes what is asked, and fails as it is said to."""

    calls: list = []
    failure: Exception | None = None

    def __init__(self, token):
        self.token = token

    def whoami(self):
        if self.failure is not None:
            raise self.failure
        return {"name": "me"}

    def create_repo(self, repo_id, *, private=None, exist_ok=False):
        self.calls.append(("create", self.token, repo_id, private, exist_ok))
        return RepoUrl(repo_id)

    def upload_folder(self, *, repo_id, folder_path, commit_message=None):
        self.calls.append(("upload", repo_id, folder_path, commit_message))


class RepoUrl(str):
    """As huggingface_hub gives it: the address, with the full name of the repository."""

    def __new__(cls, name):
        made = super().__new__(cls, f"https://huggingface.co/me/{name}")
        made.repo_id = f"me/{name}"
        return made


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(hub, "HfApi", FakeHub)
    monkeypatch.setattr(hub, "get_token", lambda: "secret")
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(FakeHub, "failure", None)
    return FakeHub


def test_the_repository_is_made_and_the_folder_uploaded(fake, tmp_path):
    assert hub.push(tmp_path, "digits", private=True) == "https://huggingface.co/me/digits"
    made, uploaded = fake.calls
    assert made == ("create", "secret", "digits", True, True)
    assert uploaded[:3] == ("upload", "me/digits", str(tmp_path))


def refusal(status: int) -> HfHubHTTPError:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    Exception.__init__(error, f"{status} Client Error\nmore")
    error.response = SimpleNamespace(status_code=status)
    return error


@pytest.mark.parametrize(
    "failure, message",
    [
        (refusal(403), r"(?s)the Hub does not know you.*403 Client Error\n.*a token that may write there"),
        (refusal(500), r"(?s)the Hub does not know you.*500 Client Error$"),
        (ConnectionError("no route"), r"(?s)the Hub cannot be reached.*ConnectionError: no route.*hf upload"),
    ],
)
def test_what_fails_is_said(fake, failure, message):
    fake.failure = failure
    with pytest.raises(UserError, match=message):
        hub.check_push("digits")


def test_without_a_token_nothing_begins(fake, monkeypatch):
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with pytest.raises(UserError, match=r"(?s)no token for the Hub.*hf auth login, or HF_TOKEN"):
        hub.check_push("digits")
    assert not fake.calls


def test_a_bad_name_is_refused_by_the_library_itself(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "get_token", lambda: "secret")
    with pytest.raises(UserError, match="this is no name of a repository"):
        hub.push(tmp_path, "a/b/c d", private=False)


def test_private_is_about_the_hub(tmp_path):
    done = CliRunner().invoke(app, ["export", str(tmp_path), str(tmp_path / "out"), "--private"])
    assert done.exit_code and "--private is about a repository of the Hub" in str(done.output) + str(done.exception)
