"""What the runtime of JAX prints when another process is gone, in one line: run beside a process, it reads its output.

The runtime ends a process that has lost the others, or never met them all, by an abort with many lines and a stack. Of
the lines read here, one that begins with a byte 0 says what is printed instead, one with a byte 1 is the last line. The
runtime may also abort without a line, of which Python's ``faulthandler`` tells.

A script of its own, which imports nothing of fgis: ``python -I last_words.py``, lines on standard input.
"""

import re
import sys
from collections.abc import Iterable, Iterator

RECORD = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d")  # the beginning of a line of the runtime's log
LOST = re.compile(rb"F\d{4} .*JAX distributed service detected fatal errors|Fatal Python error: (?!Seg)")
OURS = re.compile(rb"[WE]\d{4} .*(coordination_service|preemption_sync_manager|add_port\.cc)")


def without_dumps(lines: Iterable[bytes]) -> Iterator[bytes]:
    r"""The lines that are worth printing.

    >>> log = [b"\0lost them\n", b"hello\n", b"E1126 20:32:13.6 1 coordination_service.cc:1] gone:\n", b"1\n",
    ...        b"F1126 20:32:13.6 1 client.h:80] Terminating process because the JAX distributed service detected "
    ...        b"fatal errors.\n", b"    @ 0x7f\n"]
    >>> list(without_dumps(log))
    [b'hello\n', b'lost them\n']
    >>> list(without_dumps([*log[:2], b"Fatal Python error: Aborted\n", b"Thread 0x7f\n"]))
    [b'hello\n', b'lost them\n']
    """
    words, dropping = b"", False
    for line in lines:
        if line.startswith(b"\0"):
            words = line[1:]
        elif b"\1" in line or LOST.search(line):  # anywhere, since an abort on another thread tears lines
            yield line.partition(b"\1")[2] or words
            return
        else:
            if RECORD.match(line):
                dropping = bool(OURS.match(line))  # the lines after it, which have no such beginning, belong to it
            if not dropping:
                yield line


if __name__ == "__main__":
    for kept in without_dumps(sys.stdin.buffer):
        sys.stdout.buffer.write(kept)
        sys.stdout.buffer.flush()
    for _ in sys.stdin.buffer:  # the process is writing its stack; a closed pipe would kill it before it aborts
        pass
