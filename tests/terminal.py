"""A terminal as a person sits at: a program under a pseudo-terminal, its screen kept by an emulator that no one here wrote."""

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time

import pyte

CTRL_C, CTRL_D, TAB, UP = "\x03", "\x04", "\t", "\x1b[A"


class Screen(pyte.HistoryScreen):
    """Answers what a program asks its terminal, such as where the cursor is."""

    def __init__(self, columns, lines, answer):
        super().__init__(columns, lines, history=10_000)
        self.answer = answer

    def write_process_input(self, data):
        self.answer(data)


class Terminal:
    def __init__(self, command, environment, columns=100, lines=40):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
            os.execve(command[0], [str(word) for word in command], {"TERM": "xterm-256color", **environment})
        self.screen = Screen(columns, lines, self.type)
        self.stream = pyte.ByteStream(self.screen)
        self.ended = False

    def type(self, text):
        os.write(self.fd, text.encode())

    def text(self):
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def wait_for(self, wanted, seconds=30):
        """Until the screen holds a text, or satisfies a function of its text."""
        holds = wanted if callable(wanted) else lambda text: wanted in text
        deadline = time.monotonic() + seconds
        while not holds(self.text()):
            assert not self.ended and time.monotonic() < deadline, f"no {wanted!r} on the screen:\n{self.text()}"
            self.read(deadline - time.monotonic())
        return self.text()

    def read(self, seconds):
        if not select.select([self.fd], [], [], max(seconds, 0))[0]:
            return
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # how Linux says that nobody holds the other end any more
            data = b""
        self.ended = not data
        self.stream.feed(data)

    def wait_for_end(self, seconds=30):
        """Its exit code."""
        deadline = time.monotonic() + seconds
        while not self.ended:
            assert time.monotonic() < deadline, f"it goes on:\n{self.text()}"
            self.read(deadline - time.monotonic())
        return os.waitstatus_to_exitcode(self._reap())

    def _reap(self):
        pid, self.pid = self.pid, None
        return os.waitpid(pid, 0)[1]

    def close(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            self._reap()
        os.close(self.fd)
