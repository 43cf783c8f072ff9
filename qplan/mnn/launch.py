"""Run between qplan and every child process: the child ends when qplan does, even if that is killed.

Arguments: the reading end of a pipe, as the number of an open file, then the child's command line. qplan alone has the
writing end, and the system closes it with qplan, by whatever signal that ends. A process of its own waits for that: in
the child, native code may keep Python's threads from running for minutes. Not part of the package's import graph.
"""

import os
import signal
import sys


def watch(lifeline: int) -> None:
    """Wait for the end of the pipe, then kill the group: the child, what it has started, and this process."""
    os.chdir("/")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # qplan reads the child's output to its end
        os.dup2(nowhere, stream)
    os.read(lifeline, 1)
    os.killpg(0, signal.SIGKILL)


def main() -> None:
    """Start the process that watches, and become the child."""
    lifeline, command = int(sys.argv[1]), sys.argv[2:]
    between = os.fork()
    if between == 0:  # forked twice, so that the child has no child that it does not know
        if os.fork() == 0:
            watch(lifeline)
        os._exit(0)
    os.waitpid(between, 0)
    os.close(lifeline)
    os.execv(command[0], command)  # noqa: S606 - what qplan wants to run


main()
