"""``python -m deploy.demo``: see ``--help``."""

import signal
import sys

EXIT_INTERRUPTED = 130


def main() -> int:
    """The demo's exit code. Ctrl-C ends it quietly at any time, while it still loads too."""
    # A script's background job inherits SIGINT ignored; the demo heeds it all the same.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        from deploy.demo.play import main as play

        return play()
    except KeyboardInterrupt:
        print("\nstopped; no process is left", flush=True)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
