"""A model's folder, looked at as data: where it is, what kind of thing it holds, whether it is whole.

Nothing in it is run and nothing is unpickled. Whatever is wrong ends in a `RecipeError` that says which
file, and what to do about it; the caller puts the recipe's path in front.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from rlframe.errors import RecipeError, did_you_mean, listed

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""What save_pretrained calls them; transformers knows these names too, and imports torch."""
_GENERATION = "generation_config.json"
_ADAPTER = "adapter_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_FORMATS = {
    ".gguf": "GGUF, the quantised weights of llama.cpp",
    ".h5": "TensorFlow",
    ".msgpack": "Flax",
    ".onnx": "ONNX",
}
_VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model",
    "sentencepiece.bpe.model", "vocab.model", "tekken.json", "*.tiktoken", "*.spm",
)  # fmt: skip
_SMALL = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.spm")
"""Everything of a repository of the hub but its weights and its code."""
_LFS = b"version https://git-lfs.github.com/spec/"
# What transformers writes where it trains on many machines: it would be read in place of the other.
_RANK_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True)
class ModelFolder:
    """The folder of a model.

    Args:
      name: as the recipe has it, a path or the id of a repository of the hub.
      path: where it lies on this machine.
      hub: whether `name` is the id of a repository, of which files are fetched when they are asked for.
    """

    name: str
    path: Path
    hub: bool

    def fetch(self, *patterns: str) -> None:
        """Have those files of a repository on this machine; those of a path are where they are."""
        if self.hub:
            _snapshot(self.name, patterns)

    def json(self, file: str) -> dict[str, Any]:
        """A JSON object of the folder.

        Raises:
          RecipeError: it is not there, empty, a Git LFS pointer, or no JSON object.
        """
        path = self.path / file
        try:
            _refuse_pointer(path)
            found = json.loads(path.read_text(encoding="utf-8-sig"))
        except json.JSONDecodeError as error:
            what = (
                "is empty"
                if not path.read_text(encoding="utf-8").strip()
                else f"is no JSON: {error}"
            )
            raise RecipeError(f"{path} {what}. Copy the folder again") from error
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise RecipeError(f"{path} holds a {type(found).__name__}, it must be a JSON object")
        return found

    def has_tokenizer(self) -> bool:
        """Whether there is a vocabulary in it."""
        return any(any(self.path.glob(pattern)) for pattern in _VOCABULARIES)

    def has_template(self) -> bool:
        """Whether its tokenizer writes chats."""
        if any(self.path.glob("chat_template.*")):
            return True
        settings = "tokenizer_config.json"
        return (self.path / settings).exists() and bool(self.json(settings).get("chat_template"))

    def check_tokenizer(self) -> None:
        """Refuse a folder without a tokenizer, or with files that were never fetched.

        Raises:
          RecipeError: that is so.
        """
        if not self.has_tokenizer():
            raise RecipeError(
                f"{self.path} has no tokenizer (no tokenizer.json, tokenizer.model or vocab file; it "
                f"holds {self._contents()}). Save it beside the model: "
                f"tokenizer.save_pretrained({str(self.path)!r})"
            )
        for pattern in (*_VOCABULARIES, "tokenizer_config.json"):
            for path in self.path.glob(pattern):
                _refuse_pointer(path)

    def check_model(self) -> None:
        """Refuse what is no folder of a whole model.

        Raises:
          RecipeError: it is an adapter, or a format that cannot be trained, or has no config.
        """
        if (self.path / _ADAPTER).exists():
            raise RecipeError(self._adapter())
        if not (self.path / CONFIG).exists():
            raise RecipeError(f"{self.path} is no model: it has no {CONFIG}. {self._guess()}")
        if (self.path / _GENERATION).exists():
            self.json(_GENERATION)  # transformers takes a broken one for none, and its ends with it

    def check_config(self, known: Collection[str] | None) -> dict[str, Any]:
        """The config as it is written, of a model that can be trained.

        Args:
          known: the model types of transformers; no type is refused if they are not known.

        Raises:
          RecipeError: it is damaged, of weights that are quantised, or of a type that is not known.
        """
        written, path = self.json(CONFIG), self.path / CONFIG
        parts = (written, *(part for part in written.values() if isinstance(part, dict)))
        quantised = next((q for part in parts if (q := part.get("quantization_config"))), None)
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise RecipeError(
                f"{path}: the weights are quantised ({method or 'quantization_config'}), and those "
                "cannot be trained. Name the model that they were made from"
            )
        kind = written.get("model_type")
        if kind is None:
            raise RecipeError(f"{path} has no `model_type`, so that nobody knows which model it is")
        if known is not None and kind not in known:
            own = ", and the code that comes with the folder is never run" * ("auto_map" in written)
            raise RecipeError(
                f"{path}: this transformers has no model type {kind!r}{own}."
                f"{did_you_mean(str(kind), known)} A newer version may have it: "
                "pip install -U transformers"
            )
        return written

    def _adapter(self) -> str:
        about = self.json(_ADAPTER)
        base = about.get("base_model_name_or_path")
        kind = str(about.get("peft_type", "PEFT"))
        return (
            f"{self.path} is an adapter ({kind}) of {base!r}, not a whole model. Merge it first: "
            f"peft.AutoPeftModelForCausalLM.from_pretrained({str(self.path)!r}).merge_and_unload()"
            ".save_pretrained('merged'), save the tokenizer there too, and name that folder"
        )

    def _guess(self) -> str:
        """What somebody may have meant by a folder without a config."""
        inner = sorted(
            str(found.parent)
            for depth in ("*", "*/*", "*/*/*")
            for found in self.path.glob(f"{depth}/{CONFIG}")
        )
        if inner:
            return f"Did you mean {inner[0]!r}?" + (
                f" There are {listed(inner[:8])}" * (len(inner) > 1)
            )
        return self._format() or f"It holds {self._contents()}"

    def _format(self) -> str:
        """What to do about weights in a format that is not read, or nothing where there are none."""
        files = sorted(path.name for path in self.path.iterdir() if path.is_file())
        for ending, name in _OTHER_FORMATS.items():
            if found := [file for file in files if file.endswith(ending)]:
                return (
                    f"{found[0]} is in the format of {name}, which cannot be trained; name the "
                    "original model, in safetensors"
                )
        if found := [file for file in files if file.endswith(_PICKLES)]:
            return (
                f"{found[0]} is a pickle, and opening a pickle runs whatever code it holds, so none is "
                "opened. Ask its author for safetensors; for a model of the hub, "
                "https://huggingface.co/spaces/safetensors/convert makes them elsewhere"
            )
        if found := [file for file in files if file.endswith(".safetensors")]:
            return (
                f"{found[0]} is not a name by which transformers finds weights: save the model with "
                f"save_pretrained, which writes {WEIGHTS}"
            )
        return ""

    def _contents(self) -> str:
        names = sorted(path.name for path in self.path.iterdir() if not path.name.startswith("."))
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return ", ".join(names[:8]) + more or "nothing"

    def weights(self) -> dict[str, Tensor]:
        """Name, shape and dtype of every tensor of its weights, on the meta device.

        Raises:
          RecipeError: there are none, a file is missing, cut off or was never fetched.
        """
        from transformers.modeling_utils import load_state_dict

        found: dict[str, Tensor] = {}
        for path in self._weight_files():
            with _whole(path):
                found |= load_state_dict(path, map_location="meta")
        return found

    def check_weights(self) -> None:
        """Read the header of each file of weights, which says how long the file must be.

        Raises:
          RecipeError: as of `weights`.
        """
        for path in self._weight_files():
            with _whole(path), safe_open(path, framework="numpy"):
                pass

    def _weight_files(self) -> list[Path]:
        self.fetch(WEIGHTS, INDEX)
        ranks = [path.name for path in self.path.iterdir() if _RANK_FILE.fullmatch(path.name)]
        if ranks:
            raise RecipeError(
                f"{self.path} holds {min(ranks)}, a rank's share of a distributed checkpoint; save the "
                "whole model with save_pretrained"
            )
        if (self.path / WEIGHTS).exists():
            return [self.path / WEIGHTS]
        if (self.path / INDEX).exists():
            return self._shards()
        raise RecipeError(
            f"{self.path} has no {WEIGHTS}. "
            f"{self._format() or f'There are no weights in it; it holds {self._contents()}'}"
        )

    def _shards(self) -> list[Path]:
        index = self.json(INDEX).get("weight_map")
        named = isinstance(index, Mapping) and all(isinstance(n, str) for n in index.values())
        if not named or not index:
            raise RecipeError(
                f"{self.path / INDEX} has no `weight_map`, which says where the "
                "weights are. Copy the folder again"
            )
        names = sorted(set(index.values()))
        self.fetch(*names)
        missing = [name for name in names if not (self.path / name).exists()]
        if missing:
            raise RecipeError(
                f"{self.path / missing[0]} is missing: {len(missing)} of {len(names)} files of weights "
                f"that {INDEX} names are not there. Copy or download them"
            )
        return [self.path / name for name in names]


def find(name: str) -> ModelFolder:
    """The folder of a model or tokenizer.

    Args:
      name: a path, `~` allowed, or the id of a repository of the hub, whose small files are fetched.

    Raises:
      RecipeError: there is no such folder, and no such repository that can be reached.
    """
    return on_this_machine(name) or ModelFolder(name, _snapshot(name, _SMALL), hub=True)


def on_this_machine(name: str) -> ModelFolder | None:
    """The folder of a model that is given as a path; None for what may be an id of the hub.

    Raises:
      RecipeError: it is a path, and there is no folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return ModelFolder(name, path, hub=False)
    if path.exists():
        raise RecipeError(
            f"{name!r} is a file; a model is a folder with {CONFIG} and {WEIGHTS}. Did you "
            f"mean {str(path.parent)!r}?"
        )
    if _is_path(name):
        raise RecipeError(f"there is no folder {name!r}.{_neighbours(path)}")
    return None


def _is_path(name: str) -> bool:
    """Whether a name that is not there is that of a folder: no id, or the folder around it is there."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return name.startswith((".", "~")) or ("/" in name and Path(name).parent.is_dir())


def _neighbours(path: Path) -> str:
    """A guess at the folder that was meant, and what there is."""
    around = next(folder for folder in (path.parent, *path.parents) if folder.is_dir())
    if around != path.parent:
        here = "the current directory" if around == Path() else repr(str(around))
        return f" There is no {path.relative_to(around).parts[0]!r} in {here}"
    names = sorted(p.name for p in around.iterdir() if p.is_dir() and not p.name.startswith("."))
    called = {found: str(around / found) for found in names}
    holds = f" {str(around)!r} holds the folders {listed(names[:8])}" if names else ""
    return (
        did_you_mean(path.name, names, called=called)
        or holds
        or f" {str(around)!r} has no folder in it"
    )


def _snapshot(name: str, patterns: Iterable[str]) -> Path:
    """The folder of a repository in the cache, with the files of those patterns."""
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))
    except GatedRepoError as error:
        raise RecipeError(
            f"{name!r} asks for its terms to be accepted: open https://huggingface.co/{name}, accept "
            "them, and log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise RecipeError(
            f"{name!r} is neither a folder here nor a model of the Hugging Face hub."
            f"{_beside(name)} A private model needs `hf auth login`"
        ) from error
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        if is_offline_mode():
            way = (
                "HF_HUB_OFFLINE is set, so that nothing is downloaded: unset it to fetch the model"
            )
        else:
            way = (
                f"the hub cannot be reached ({_first_line(error)}): download the model where it can, "
                f"with `hf download {name}`"
            )
        raise RecipeError(
            f"{name!r} is neither a folder here nor in the cache of the Hugging Face hub, and "
            f"{way}, or give the path of a folder.{_beside(name)}"
        ) from error


def _beside(name: str) -> str:
    """A guess at a folder of the current directory."""
    folders = [path.name for path in Path().iterdir() if path.is_dir()]
    return did_you_mean(name, folders)


def _first_line(error: BaseException) -> str:
    return str(error.__cause__ or error).strip().partition("\n")[0]


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Open a file of weights, and say what is wrong with one that cannot be opened."""
    _refuse_pointer(path)
    try:
        yield
    except (SafetensorError, OSError, ValueError) as error:
        raise RecipeError(
            f"{path} is cut off or damaged ({error}; it has {path.stat().st_size} bytes). Copy or "
            "download it again"
        ) from error


def _refuse_pointer(path: Path) -> None:
    """Refuse the three lines that Git leaves in a file's place until Git LFS has fetched it."""
    with path.open("rb") as file:
        if file.read(len(_LFS)) != _LFS:
            return
    raise RecipeError(
        f"{path} is a Git LFS pointer: the file itself was never fetched. Run `git lfs pull` in "
        f"{path.parent}, or download the model with `hf download`"
    )
