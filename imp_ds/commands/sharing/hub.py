"""`imp_ds export RUN OUT --push_to_hub NAME`: an exported folder as a repository of the Hugging Face Hub.

What is uploaded is the folder as it stands: weights, configurations, code, card. The token is the one of `hf auth login` or of
the variable HF_TOKEN, and the place the Hub or what HF_ENDPOINT names.
"""

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from imp_ds.errors import UserError

_LOG_IN = "hf auth login, or HF_TOKEN=TOKEN before the command"


def check_push(name: str) -> None:
    """Find out, before anything is written, that there is a token which may write, and that the name is one.

    Raises UserError as `push`.
    """
    _called("the Hub does not know you", lambda: HfApi(token=_token()).whoami(), name)


def push(folder: Path, name: str, private: bool) -> str:
    """Make the repository if there is none, upload all files of the folder in one commit, and return its address.

    Args:
        folder: of an exported model.
        name: of the repository, "NAME" or "ORGANISATION/NAME".
        private: whether a new repository is only seen by those who are let in; an old one stays what it is.

    Raises UserError without a token, without the network, and for what the Hub refuses.
    """
    api = HfApi(token=_token())
    made = _called("the repository cannot be made", lambda: api.create_repo(name, private=private, exist_ok=True), name)
    upload = lambda: api.upload_folder(  # noqa: E731
        repo_id=made.repo_id, folder_path=str(folder), commit_message="Upload a model exported by imp_ds"
    )
    _called("the model cannot be uploaded", upload, name)
    return str(made)


def _token() -> str:
    found = get_token()
    if found is None:
        raise UserError("no token for the Hub", got="--push_to_hub without being logged in", fix=_LOG_IN)
    return found


def _called(what: str, call, name: str):
    """What the call returns. Raises UserError with `what` for what goes wrong on the way to the Hub or there."""
    try:
        return call()
    except HFValidationError as error:
        raise UserError("this is no name of a repository", got=f"{name}: {error}", allowed="NAME or ORGANISATION/NAME") from None
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        fix = f"a token that may write there: {_LOG_IN}" if status in (401, 403) else None
        raise UserError(what, got=f"{name}: {_first_line(error)}", fix=fix) from None
    except (HTTPError, OSError) as error:
        got = f"{name}: {type(error).__name__}: {_first_line(error)}"
        fix = "once there is a network: hf upload NAME OUT, or the command again with another OUT"
        raise UserError(f"{what}: the Hub cannot be reached", got=got, fix=fix) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
