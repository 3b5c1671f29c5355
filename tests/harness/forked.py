"""`python -S forked.py FD …` is `sidecar …` for a shell: a process of forks.py, whose server takes messages at FD.

A file of its own: it imports nothing but the standard library, so that a start takes hundredths of a second. It has the
shell's folder, environment, streams and limit of open files, passes on signals, and ends as the other process does.
"""

import json
import os
import resource
import signal
import socket
import sys

_HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDED_ON)  # There is nobody yet to hand them on to.
    ours, its = socket.socketpair()
    asked = {
        "arguments": sys.argv[2:],
        "environ": dict(os.environ),
        "folder": os.getcwd(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
    }
    socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [json.dumps(asked).encode()], [0, 1, 2, its.fileno()])
    its.close()
    pid = int.from_bytes(ours.recv(8), "big")
    for number in _HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDED_ON)
    # It alone holds the streams from here on, so that their ends are seen when it ends.
    with open(os.devnull, "r+b") as nothing:
        for stream in range(3):
            os.dup2(nothing.fileno(), stream)
    told = ours.recv(8)
    status = int.from_bytes(told, "big", signed=True) if told else 1
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
