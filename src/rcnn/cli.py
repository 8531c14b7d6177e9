"""The command line: finds the verb, imports it, and turns the user's mistakes into one message and status 2."""

import sys
from importlib import import_module

from rcnn.terminal import printable

VERBS = {
    "train": "train a detector: rcnn train RECIPE --data.root DIR",
    "test": "detect on a set and print the metrics: rcnn test MODEL --data.root DIR",
    "demo": "detect on pictures and draw the boxes: rcnn demo MODEL IMAGE...",
    "proposals": "regions of a set to a file, by RPN or selective search, and their recall",
    "reeval": "metrics again from saved detections, without a model",
    "convert": "another program's weights to ours: rcnn convert SOURCE --out FILE.safetensors",
    "combine": "an RPN and a Fast R-CNN of one backbone to one detector",
    "download": "data sets and ImageNet weights, resumable and checked: rcnn download --list",
    "bench": "time inference and training on this machine",
    "quickstart": "the whole way on a small generated data set",
}


def usage() -> str:
    """What `rcnn --help` prints."""
    lines = ["usage: rcnn VERB ...", "", "Faster R-CNN: train, test and use detectors.", ""]
    lines += [f"  {verb:<11} {what}" for verb, what in VERBS.items()]
    return "\n".join([*lines, "", "rcnn VERB --help shows the options of a verb."])


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns 0 done, 2 the input is at fault, 1 anything else."""
    argv = sys.argv[1:] if argv is None else argv
    argv = argv[1:] if argv[:1] == ["--"] else argv  # torchrun -m rcnn -- train: without it torchrun takes our --run
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from rcnn import __version__

        print(f"rcnn {__version__}")
        return 0
    if argv[0] not in VERBS:
        return _fault(f"unknown verb {argv[0]!r}{_closest(argv[0])}\n\n{usage()}")
    try:
        return import_module(f"rcnn.commands.{argv[0]}").main(argv[1:])
    except ValueError as error:
        return _fault(str(error))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone; so would the message at exit
        return 1
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"rcnn: {printable(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _fault(message: str) -> int:
    print(f"rcnn: {printable(message)}", file=sys.stderr)
    return 2


def _closest(word: str) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, VERBS, n=1)
    return f"; did you mean {close[0]}?" if close else ""


if __name__ == "__main__":
    sys.exit(main())
