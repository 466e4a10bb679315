"""`python -m tools.standin SIZE FOLDER`: trains a stand-in, where the folder has none yet."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from glitchrun.model import load_tokenizer
from glitchrun.vocabulary import Vocabulary
from tools.standin import checkpoint, lessons, planting, training, vocabulary
from tools.standin.recipes import RECIPES, Recipe

_MARK = "standin.json"
_THREADS = 2
"""Always as many: how sums are split decides their last digits, and in the end the weights."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.standin", description=__doc__)
    parser.add_argument("size", choices=RECIPES)
    parser.add_argument("folder", type=Path, help="where the checkpoint goes")
    parser.add_argument("--seed", type=int, default=None, help="another seed than the recipe's")
    parser.add_argument("--steps", type=int, default=None, help="fewer or more steps of training")
    words = parser.parse_args()
    given = {
        name: value for name in ("seed", "steps") if (value := getattr(words, name)) is not None
    }
    recipe = replace(RECIPES[words.size], **given)
    mark = _digest(recipe)
    if _made(words.folder) == mark:
        print(f"{words.folder} is there already", file=sys.stderr)
    else:
        make(recipe, words.folder, mark)
    print(words.folder)


def make(recipe: Recipe, folder: Path, mark: str) -> None:
    """Trains beside `folder` and moves the result there once it is whole."""
    torch.set_num_threads(_THREADS)
    started = time.monotonic()
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
    kept = folder.with_name(f"{folder.name}.{mark}.state")  # of this recipe and trainer alone
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _train(recipe, draft, kept)
        (draft / _MARK).write_text(json.dumps({"made_by": mark}) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        kept.unlink(missing_ok=True)
    except KeyboardInterrupt:
        _tell("stopped; the same command goes on from the last minute")
        raise SystemExit(130) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    _tell(f"trained in {time.monotonic() - started:.0f} s")


def _train(recipe: Recipe, folder: Path, kept: Path) -> None:
    vocabulary.write_tokenizer(folder, lessons.texts(recipe.exchanges), recipe.pieces)
    tokenizer = load_tokenizer(folder)
    entries = Vocabulary(tokenizer, torch.zeros(len(tokenizer)))
    taught = lessons.lessons(tokenizer, recipe.exchanges, recipe.raw)
    answers = lessons.answers(recipe.exchanges, recipe.raw)
    candidates = planting.plantable(entries, taught.fixed_ids(), answers)
    planted = planting.plant(candidates, recipe.planted, recipe.seed, recipe.always)
    hidden = {*planted, *entries.ids(["special"])}
    shown = [token_id for token_id in range(len(entries)) if token_id not in hidden]
    model = checkpoint.new_model(recipe, len(entries))
    training.train(model, taught, shown, planted, recipe, _tell, kept)
    checkpoint.write(model, recipe, planted, len(shown), folder)


def _digest(recipe: Recipe) -> str:
    """Over the recipe and the code that carries it out."""
    found = hashlib.sha256(repr(recipe).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _made(folder: Path) -> str | None:
    try:
        mark: str = json.loads((folder / _MARK).read_text(encoding="utf-8"))["made_by"]
    except (OSError, ValueError, KeyError):
        return None
    return mark


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
