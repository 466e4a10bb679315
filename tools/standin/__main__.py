"""`python -m tools.standin SIZE FOLDER`: trains a stand-in, unless the folder already has it."""

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
"""Always the same number: it changes the rounding of sums, and so the weights."""


def main() -> None:
    """Parse the command line, train the stand-in if necessary, and print its folder."""
    parser = argparse.ArgumentParser(prog="python -m tools.standin", description=__doc__)
    parser.add_argument("size", choices=RECIPES)
    parser.add_argument("folder", type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=None, help="a seed other than the recipe's")
    parser.add_argument(
        "--steps", type=int, default=None, help="number of training steps instead of the recipe's"
    )
    arguments = parser.parse_args()
    given = {
        name: value for name in ("seed", "steps") if (value := getattr(arguments, name)) is not None
    }
    recipe = replace(RECIPES[arguments.size], **given)
    mark = _digest(recipe)
    if _made(arguments.folder) == mark:
        print(f"{arguments.folder} exists already", file=sys.stderr)
    else:
        make(recipe, arguments.folder, mark)
    print(arguments.folder)


def make(recipe: Recipe, folder: Path, mark: str) -> None:
    """Train in a temporary folder and rename it to `folder` when it is complete."""
    torch.set_num_threads(_THREADS)
    started = time.monotonic()
    draft = folder.with_name(f"{folder.name}.{os.getpid()}.draft")
    kept = folder.with_name(f"{folder.name}.{mark}.state")  # only of this recipe and this code
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        _train(recipe, draft, kept)
        (draft / _MARK).write_text(json.dumps({"made_by": mark}) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        draft.rename(folder)
        kept.unlink(missing_ok=True)
    except KeyboardInterrupt:
        _tell("stopped; the same command resumes from the last saved state, at most a minute old")
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
    """A digest of the recipe and of the code in this package."""
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
