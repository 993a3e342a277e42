"""The tokenizer's own process: reads questions from its standard input, a line each, and answers each with a line.

A question is `{"vocabulary": name, "texts": [text, …]}`, the answer the list of counts, or null where there is none.
The process ends with its input. It stands apart from the router, because the library holds the interpreter while it
loads a vocabulary (0.2 s) and while it counts a text (up to 0.5 s a megabyte), because a vocabulary takes 30 MiB, and
because native code that few have looked at need not be where the keys are.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from typing import Any


@cache
def tokenizer(vocabulary: str) -> Any:
    """The tokenizer of a vocabulary that comes with the library. Raises ValueError for another one."""
    return importlib.import_module("splintr").Tokenizer.from_pretrained(vocabulary)


def answer(line: str) -> list[int] | None:
    """The counts that a question asks for. Text that looks like a control token is text."""
    try:
        question = json.loads(line)
        encode = tokenizer(question["vocabulary"]).encode_ordinary
        return [len(encode(text)) for text in question["texts"]]
    except (ImportError, KeyError, TypeError, ValueError, RuntimeError):
        return None


def main() -> None:
    """Answer until the input ends."""
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(line)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
