"""Jobs one after the other, each told by its name."""

import subprocess
from collections import deque

from hfadapt.backends import Backend, Workers, command, how


class InTurn(Workers):
    def __init__(self, say):
        self.waiting, self.now, self.say = deque(), None, say

    def submit(self, jobs):
        self.waiting.extend(jobs.items())

    def ended(self):
        if self.now is None and self.waiting:
            path, job = self.waiting.popleft()
            self.say(f"in turn: {job.name}")
            self.now = job.name, subprocess.Popen(command(path), stdin=subprocess.DEVNULL)
        if self.now is None or (code := self.now[1].poll()) is None:
            return {}
        name, self.now = self.now[0], None
        return {name: how(code)}

    def stop(self):
        if self.now is not None:
            self.now[1].terminate()
            self.now[1].wait()


class Own(Backend):
    name = "in-turn"

    def open(self, address, folder, say):
        return InTurn(say)


KIND = Own()
