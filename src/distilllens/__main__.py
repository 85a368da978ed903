"""``distilllens`` and ``python -m distilllens``, also under torchrun: a command as a process."""

import os
import signal
import sys


def run():
    """Run the command in ``sys.argv`` and leave with its status; Ctrl-C ends it in one line."""
    main_process = os.getpid()

    def interrupt(number, frame):
        if os.getpid() != main_process:
            os._exit(130)  # a worker process, such as those of datasets, has nothing to add
        raise KeyboardInterrupt

    # A parent that ignores Ctrl-C, such as nohup or a shell script's "&", has its way.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from distilllens.cli import main

        status = main()
    except KeyboardInterrupt:  # while the command line itself was being loaded
        print("distilllens: interrupted", file=sys.stderr)
        status = 130
    # What is left is Python's own end, of which a second Ctrl-C would print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if status and os.environ.get("WORLD_SIZE", "1") != "1":
        # The threads of a process group that has lost a process can keep Python from ending.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    run()
