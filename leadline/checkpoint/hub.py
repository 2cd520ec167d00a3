"""Models from the hubs: Hugging Face through its own library and cache, ModelScope over plain HTTP.

Only what a model is made of is fetched, never a line of code. Downloads resume where they broke off, and a file is used
only when its sha256 is the one the hub states.

Invariant: before a byte of weights comes, the disk is known to hold them all. No torch here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leadline.checkpoint.machine import check_space
from leadline.checkpoint.progress import progress_bar
from leadline.errors import CheckpointError, ConnectionFailed, ModelNotFound
from leadline.model.config import ModelConfig

if TYPE_CHECKING:
    import httpx2

MODELSCOPE_ENDPOINT = "https://modelscope.cn"
ATTEMPTS = 5
_BAR_FROM_BYTES = 8 << 20

_WANTED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|model\.safetensors\.index)\.json"
    r"|chat_template\.jinja|model[\w.-]*\.safetensors|LICENSE[\w.-]*"
)


@dataclasses.dataclass(frozen=True, slots=True)
class RemoteFile:
    """`sha256` is None for small files that the hub keeps in git, where only the size is stated."""

    path: str
    size: int
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class Repository:
    """What a hub has of a model: its wanted files, where they are, and what may be done with them."""

    revision: str
    files: tuple[RemoteFile, ...]
    url: Callable[[str], str]
    licence: str = "not stated"


def is_wanted(path: str) -> bool:
    """Weights, configuration, tokenizer and licence, at the top of the repository; programs and pickles never."""
    return _WANTED.fullmatch(path) is not None and not path.endswith(".py")


def check_file(path: Path, file: RemoteFile) -> None:
    """Remove and refuse a file that is not what the hub says it is."""
    if path.stat().st_size != file.size:
        fault = f"{path.stat().st_size:,} bytes instead of {file.size:,}"
    elif file.sha256 is not None and sha256(path) != file.sha256:
        fault = "the wrong sha256"
    else:
        return
    path.resolve().unlink()
    path.unlink(missing_ok=True)
    raise CheckpointError(f"{file.path} arrived damaged, with {fault}; it was removed, try again")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HuggingFace:
    """`org/name`. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to the hub's library."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.licence = "not stated"

    @property
    def reference(self) -> str:
        return self.name

    @property
    def download_folder(self) -> Path | None:
        return _hugging_face_cache()

    def read_config(self) -> ModelConfig:
        """Whether the hub can be reached is asked once: its library would try for half a minute before it looked at
        what is here."""
        with _hugging_face_errors(self.name):
            revision, _ = self._list()
            path = self._download("config.json", local_files_only=revision is None)
            return ModelConfig.from_folder(path.parent)

    def fetch(self, *, progress: bool | None = None) -> Path:
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if progress is False or (progress is None and not sys.stderr.isatty()):
            disable_progress_bars()
        with _hugging_face_errors(self.name):
            revision, files = self._list()
            if revision is None:  # no network: what an earlier run brought, whose weights are checked like any folder's
                return self._download("config.json", local_files_only=True).parent
            missing = [file for file in files if self._is_missing(file, revision)]
            if missing:
                check_space(_hugging_face_cache(), sum(file.size for file in missing))
            for file in missing:
                check_file(self._download(file.path, revision=revision), file)
            return self._download("config.json", revision=revision).parent

    def repository(self) -> Repository:
        """Asked now; raises `ConnectionFailed` when the hub cannot be reached."""
        with _hugging_face_errors(self.name):
            revision, files = self._list()
        if revision is None:
            raise ConnectionFailed(f"{self.name}: Hugging Face cannot be reached")
        home = (_endpoint() or "https://huggingface.co").rstrip("/")
        return Repository(
            revision, tuple(files), lambda path: f"{home}/{self.name}/resolve/{revision}/{path}", self.licence
        )

    def client(self) -> httpx2.Client:
        """With the user's token, which is not sent on to where the hub's storage redirects."""
        import httpx2
        from huggingface_hub import get_token

        token = get_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx2.Client(follow_redirects=True, timeout=httpx2.Timeout(30.0, read=60.0), headers=headers)

    def _download(self, path: str, *, revision: str | None = None, local_files_only: bool = False) -> Path:
        from huggingface_hub import hf_hub_download

        place = hf_hub_download(
            self.name, path, revision=revision, endpoint=_endpoint(), local_files_only=local_files_only
        )
        return Path(place)

    def _list(self) -> tuple[str | None, list[RemoteFile]]:
        """The revision's commit and its files; no commit when the hub cannot be reached."""
        import httpx2
        from huggingface_hub import HfApi

        try:
            info = HfApi(endpoint=_endpoint()).model_info(self.name, files_metadata=True)
        except (httpx2.TransportError, ConnectionError, TimeoutError):
            return None, []
        card = getattr(info, "card_data", None)
        self.licence = str((card.get("license_name") or card.get("license")) if card else "") or "not stated"
        siblings = [file for file in info.siblings or [] if is_wanted(file.rfilename)]
        return info.sha, [
            RemoteFile(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in siblings
        ]

    def _is_missing(self, file: RemoteFile, revision: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return not isinstance(try_to_load_from_cache(self.name, file.path, revision=revision), str)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _hugging_face_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@contextlib.contextmanager
def _hugging_face_errors(name: str) -> Iterator[None]:
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ModelNotFound(f"{name} is gated: accept its terms on the hub and set HF_TOKEN") from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise ModelNotFound(f"{name} is neither a folder here nor a model on Hugging Face") from None
    except errors.LocalEntryNotFoundError:
        raise ConnectionFailed(f"Hugging Face cannot be reached, and {name} is not in the cache") from None
    except errors.EntryNotFoundError:
        raise CheckpointError(f"{name} on Hugging Face is not a model: it has no config.json") from None
    except (httpx2.HTTPError, OSError) as error:  # the library's own HTTP errors are OSErrors
        raise ConnectionFailed(f"{name}: the download from Hugging Face failed: {error}") from None


class ModelScope:
    """`org/name` on ModelScope, kept in leadline's own cache. MODELSCOPE_ENDPOINT names a mirror."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._endpoint = os.environ.get("MODELSCOPE_ENDPOINT", MODELSCOPE_ENDPOINT).rstrip("/")
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = cache / "leadline" / "modelscope" / name

    @property
    def reference(self) -> str:
        return self.name

    @property
    def download_folder(self) -> Path | None:
        return self.folder

    def read_config(self) -> ModelConfig:
        with self.client() as client:
            self._fetch(client, [file for file in self._list(client) if file.path == "config.json"], None)
        return ModelConfig.from_folder(self.folder)

    def fetch(self, *, progress: bool | None = None) -> Path:
        with self.client() as client:
            self._fetch(client, self._list(client), progress)
        return self.folder

    def repository(self) -> Repository:
        """Asked now; the hub's files carry no commit, their checksums stand for it."""
        with self.client() as client:
            files = self._list(client)
        if not files:
            raise ConnectionFailed(f"{self.name}: ModelScope cannot be reached")
        digest = hashlib.sha256(repr(sorted((f.path, f.size, f.sha256) for f in files)).encode()).hexdigest()
        return Repository(digest[:40], tuple(files), self._url)

    def _url(self, path: str) -> str:
        return f"{self._endpoint}/api/v1/models/{self.name}/repo?Revision=master&FilePath={path}"

    def client(self) -> httpx2.Client:
        import httpx2

        return httpx2.Client(follow_redirects=True, timeout=httpx2.Timeout(30.0, read=60.0))

    def _fetch(self, client: httpx2.Client, files: list[RemoteFile], progress: bool | None) -> None:
        missing = [file for file in files if not (self.folder / file.path).is_file()]
        total = sum(file.size for file in missing)
        check_space(self.folder, total)
        with progress_bar(f"downloading {self.name}", total, progress, _BAR_FROM_BYTES) as advance:
            for file in missing:
                download(client, self._url(file.path), self.folder / file.path, file, advance)

    def _list(self, client: httpx2.Client) -> list[RemoteFile]:
        """The repository's wanted files; none when the hub cannot be reached and an earlier run left a folder."""
        import httpx2

        url = f"{self._endpoint}/api/v1/models/{self.name}/repo/files?Revision=master&Recursive=true"
        try:
            response = client.get(url)
        except httpx2.TransportError as error:
            if (self.folder / "config.json").is_file():
                return []
            raise ConnectionFailed(
                f"ModelScope cannot be reached, and {self.name} is not in the cache: {error}"
            ) from None
        if response.status_code != 200:
            raise ModelNotFound(f"{self.name} is not a model on ModelScope (status {response.status_code})")
        return _modelscope_files(self.name, response.json())


def _modelscope_files(name: str, body: Any) -> list[RemoteFile]:
    try:
        files = [RemoteFile(f["Path"], int(f["Size"]), f.get("Sha256") or None) for f in body["Data"]["Files"]]
    except (TypeError, KeyError, ValueError):
        raise ConnectionFailed(f"{name}: ModelScope's answer is not a list of files") from None
    return [file for file in files if is_wanted(file.path)]


def download(
    client: httpx2.Client, url: str, path: Path, file: RemoteFile, advance: Callable[[int], None] = lambda done: None
) -> None:
    """Fetch one file through `path`.part, which a later attempt or run continues."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    advance(part.stat().st_size if part.is_file() else 0)
    for attempt in range(ATTEMPTS):
        if _append(client, url, part, file.size, advance):
            check_file(part, file)
            part.replace(path)
            return
        time.sleep(min(0.2 * 2**attempt, 5.0))
    raise ConnectionFailed(f"{file.path} broke off {ATTEMPTS} times; run the same again to continue it")


def _append(client: httpx2.Client, url: str, part: Path, size: int, advance: Callable[[int], None]) -> bool:
    """Fetch what the part lacks; False when the connection broke."""
    import httpx2

    done = part.stat().st_size if part.is_file() else 0
    if done >= size and part.is_file():
        return True
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={done}-"} if done else {})}
    try:
        with client.stream("GET", url, headers=headers) as response:
            response.raise_for_status()
            with part.open("ab" if response.status_code == 206 else "wb") as out:
                for block in response.iter_raw():  # as it comes: a larger block would be lost with the connection
                    out.write(block)
                    advance(len(block))
    except httpx2.HTTPStatusError as error:
        raise ConnectionFailed(f"{url} answered {error.response.status_code}") from None
    except httpx2.TransportError:
        return False
    return part.stat().st_size >= size
