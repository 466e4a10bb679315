"""What every command must know. Nothing here imports torch."""

from glitchrun.spec.probes import Probe
from glitchrun.spec.searches import SearchEntry
from glitchrun.spec.templates import Family

LONGEST = SearchEntry(
    "Verifies tokens by descending length of their text.",
    "glitchrun_outside.longest:longest",
    reads=("iterations", "batch_size"),
    parameters={
        "min_length": {
            "description": "search: longest. Least length of a token's text, in characters.",
            "type": "integer",
            "minimum": 0,
            "default": 0,
        }
    },
)

ECHO = Probe(name="echo", user="Say {token}", prefill="You said: ")

FORUM = Family(
    name="forum",
    user="Q: {user}\nA:",
    answer=" {answer}\n",
    stop="\n",
    folder_names=("forum-model",),
)
