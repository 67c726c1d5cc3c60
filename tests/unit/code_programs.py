# ruff: noqa: E501 - programs are data, a line each
"""Programs with their right reward: honest, broken and hostile ones. Every bomb here is bounded.

A program sees OUTSIDE (a file that it must not change or read), PARENT (the process that checks it) and LISTENER (a
port that somebody listens on) as text that is replaced before it runs.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

SQUARES = json.dumps({"inputs": ["3\n", "4\n"], "outputs": ["9\n", "16\n"]})
CALLS = json.dumps({"inputs": [[3], [4]], "outputs": [9, 16], "fn_name": "square"})
ASSERTS = json.dumps({"test_list": ["assert square(3) == 9", "assert square(4) == 16"]})
ONE = json.dumps({"inputs": ["3\n"], "outputs": ["9\n"]})
ONE_CALL = json.dumps({"inputs": [[3]], "outputs": [9], "fn_name": "square"})
HELD = json.dumps({"inputs": [""], "outputs": ["held"]})
"""For programs that print "held" when what they try fails."""


@dataclass(frozen=True)
class Program:
    """code, the ground truth that it is run against, its reward and its verdict (a|b where the machine's speed decides)."""

    name: str
    code: str
    score: float
    verdict: str
    truth: str = SQUARES


def tries(name: str, body: str) -> Program:
    """A program that tries something that must raise, and goes on unharmed."""
    indented = "\n".join(f"    {line}" for line in body.splitlines())
    code = (
        "import os, sys, socket, signal, ctypes, threading, time, resource\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "def call(number, *arguments):\n"
        "    if libc.syscall(number, *arguments) == -1:\n"
        "        raise OSError(ctypes.get_errno(), 'refused')\n"
        f"try:\n{indented}\n    print('got through')\n"
        "except (OSError, ValueError, MemoryError, RuntimeError, PermissionError):\n    print('held')\n"
    )
    return Program(name, code, 1.0, "correct", HELD)


HONEST = (
    Program("plain", "n = int(input())\nprint(n * n)", 1.0, "correct"),
    Program("main guard", "def main():\n    print(int(input()) ** 2)\nif __name__ == '__main__':\n    main()", 1.0, "correct"),
    Program("whole stdin", "import sys\nprint(int(sys.stdin.read()) ** 2)", 1.0, "correct"),
    Program("fd 0", "import os\nos.write(1, str(int(os.read(0, 100)) ** 2).encode())", 1.0, "correct"),
    Program("no newline", "print(int(input()) ** 2, end='')", 1.0, "correct"),
    Program("exit 0", "import sys\nprint(int(input()) ** 2)\nsys.exit(0)", 1.0, "correct"),
    Program("exit None", "import sys\nprint(int(input()) ** 2)\nsys.exit()", 1.0, "correct"),
    Program("a thread", "import threading\nthreading.Thread(target=lambda: print(int(input()) ** 2)).start()", 1.0, "correct"),
    Program("a daemon that never ends", "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\nprint(int(input()) ** 2)", 1.0, "correct"),
    Program("atexit", "import atexit\nn = int(input())\natexit.register(lambda: print(n * n))", 1.0, "correct"),
    Program("scratch file", "open('a.txt', 'w').write(input())\nprint(int(open('a.txt').read()) ** 2)", 1.0, "correct"),
    Program("stderr talk", "import sys\nprint('debug', file=sys.stderr)\nprint(int(input()) ** 2)", 1.0, "correct"),
    Program("numpy", "import numpy as np\nprint(int((np.array([int(input())]) ** 2).sum()))", 1.0, "correct"),
    Program("a writer that is never closed", "out = open(1, 'w')\nout.write(str(int(input()) ** 2))", 1.0, "correct"),
    Program("printed at the end", "class Last:\n    def __del__(self):\n        print(self.n ** 2)\nlast = Last()\nlast.n = int(input())", 1.0, "correct"),
    Program("a stdout of its own", "import sys, os\nclass Out:\n    def __init__(self): self.parts = []\n    def write(self, text): self.parts.append(text)\n    def flush(self):\n        os.write(1, ''.join(self.parts).encode())\n        self.parts = []\nn = int(input())\nsys.stdout = Out()\nprint(n ** 2)", 1.0, "correct"),
    Program("half", "n = int(input())\nprint(9)", 0.5, "wrong"),
    Program("unicode", "print('naïve ☃ 𝄞')", 1.0, "correct", json.dumps({"inputs": [""], "outputs": ["naïve ☃ 𝄞"]})),
    Program("empty output", "pass", 1.0, "correct", json.dumps({"inputs": [""], "outputs": [""]})),
    Program("floats", "print(1/3, 2.50, 3)", 1.0, "correct", json.dumps({"inputs": [""], "outputs": ["0.3333333 2.5 3"]})),
    Program("float for int", "print(4.0)", 0.0, "wrong", json.dumps({"inputs": [""], "outputs": ["4"]})),
    Program("long stdin", "import sys\nprint(len(sys.stdin.read()))", 1.0, "correct", json.dumps({"inputs": ["x" * 3_000_000], "outputs": ["3000000"]})),
    Program("stdin not read", "print(1)", 1.0, "correct", json.dumps({"inputs": ["x" * 3_000_000], "outputs": ["1"]})),
    Program("deep recursion", "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(20000))", 1.0, "correct", json.dumps({"inputs": [""], "outputs": ["20000"]})),
    Program("call", "def square(n):\n    return n * n", 1.0, "correct", CALLS),
    Program("call of Solution", "class Solution:\n    def square(self, n: int) -> List[int]:\n        return n * n", 1.0, "correct", CALLS),
    Program("call prints", "def square(n):\n    print('hello' * 100)\n    return n * n", 1.0, "correct", CALLS),
    Program("call with main guard", "def square(n):\n    return n * n\nif __name__ == '__main__':\n    print(square(int(input())))", 1.0, "correct", CALLS),
    Program("tuples are lists", "def f(n):\n    return (n, (n, 'a'))", 1.0, "correct", json.dumps({"inputs": [[3]], "outputs": [[3, [3, "a"]]], "fn_name": "f"})),
    Program("json lines", "def f(a, b):\n    return {b: a}", 1.0, "correct", json.dumps({"inputs": ['[1, 2]\n"k"'], "outputs": ['{"k": [1, 2]}'], "fn_name": "f"})),
    Program("asserts", "def square(n):\n    return n * n", 1.0, "correct", ASSERTS),
    Program("asserts, half", "def square(n):\n    return 9", 0.5, "wrong", ASSERTS),
)  # fmt: skip

BROKEN = (
    Program("syntax error", "def f(:\n", 0.0, "exception"),
    Program("exception", "1 / 0", 0.0, "exception"),
    Program("exception after the output", "print(int(input()) ** 2)\nraise ValueError('late')", 0.0, "exception"),
    Program("exit code 3", "import os\nprint(int(input()) ** 2, flush=True)\nos._exit(3)", 0.0, "exception"),
    Program("exit with text", "import sys\nprint(int(input()) ** 2)\nsys.exit('bad')", 0.0, "exception"),
    Program("end of input", "input(); input()", 0.0, "exception"),
    Program("wrong type", "def square(n):\n    return str(n * n)", 0.0, "wrong", CALLS),
    Program("float result", "def square(n):\n    return float(n * n)", 0.0, "wrong", CALLS),
    Program("True is not 1", "def f():\n    return True", 0.0, "wrong", json.dumps({"inputs": [[]], "outputs": [1], "fn_name": "f"})),
    Program("1 is not true", "def f():\n    return 1", 0.0, "wrong", json.dumps({"inputs": [[]], "outputs": [True], "fn_name": "f"})),
    Program("a set", "def square(n):\n    return {n * n}", 0.0, "wrong", CALLS),
    Program("NaN", "def square(n):\n    return float('nan')", 0.0, "wrong", CALLS),
    Program("no such function", "def cube(n):\n    return n", 0.0, "exception", CALLS),
    Program("not a function", "square = 9", 0.0, "exception", CALLS),
    Program("loop", "while True: pass", 0.0, "time_limit", ONE),
    Program("loop in C", "sum(range(10**12))", 0.0, "time_limit", ONE),
    Program("sleep", "import time\ntime.sleep(100)", 0.0, "time_limit", ONE),
    Program("a thread that never ends", "import threading, time\nprint(int(input()) ** 2, flush=True)\nthreading.Thread(target=time.sleep, args=(99,)).start()", 0.0, "time_limit", ONE),
    Program("a call that never ends", "def square(n):\n    while True: pass", 0.0, "time_limit", ONE_CALL),
    Program("spinning threads", "import threading\ndef spin():\n    while True: sum(range(10**6))\nfor _ in range(8): threading.Thread(target=spin).start()", 0.0, "time_limit", ONE),
    Program("recursion", "def f(): return f()\nf()", 0.0, "exception"),
    Program("recursion in C", "import sys\nsys.setrecursionlimit(10**9)\na = []\nfor _ in range(10**6): a = [a]\nprint(repr(a)[0])", 0.0, "crashed|time_limit", ONE),
    Program("memory", "x = bytearray(8 << 30)", 0.0, "memory_limit"),
    Program("memory, slowly", "x = []\nwhile True: x.append(bytearray(1 << 20))", 0.0, "memory_limit|time_limit", ONE),
    Program("a huge result", "def square(n):\n    return 'x' * (3 << 20)", 0.0, "output_limit", CALLS),
    Program("a result within itself", "def square(n):\n    a = []\n    a.append(a)\n    return a", 0.0, "exception", CALLS),
    Program("flood of stdout", "while True: print('x' * 10000)", 0.0, "output_limit"),
    Program("flood of stderr", "import sys\nwhile True: print('x' * 10000, file=sys.stderr)", 0.0, "output_limit"),
    Program("NUL in the source", "print(1)\x00", 0.0, "exception"),
    Program("a surrogate in the source", "print('\ud800')", 0.0, "exception"),
    Program("a surrogate in the output", "input()\nprint(chr(0xD800))", 0.0, "exception"),
    Program("brackets", "(" * 100_000 + ")" * 100_000, 0.0, "exception"),
    Program("unary operators", "-" * 2_000_000 + "1", 0.0, "any"),
    Program("a huge integer", "print(" + "9" * 100_000 + ")", 0.0, "exception"),
    Program("powers", "x = 9**9**9**9", 0.0, "any"),
    Program("a regex bomb", "import re\nre.match('(a+)+$', 'a' * 64 + 'b')", 0.0, "time_limit", ONE),
    Program("a string of ten gigabytes", "x = 'a' * 10**10", 0.0, "memory_limit"),
)  # fmt: skip

_LIAR = """
class Liar({base}):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 9
    def __repr__(self): return '9'
    __class__ = {base}
def square(n):
    return Liar({value})
"""
HOSTILE = (
    Program("lying int", _LIAR.format(base="int", value="1"), 0.0, "wrong", CALLS),
    Program("lying str", _LIAR.format(base="str", value="'1'"), 0.0, "wrong", CALLS),
    Program("lying object", _LIAR.format(base="object", value=""), 0.0, "wrong", CALLS),
    Program("lying int, asserts", _LIAR.format(base="int", value="1"), 0.0, "wrong", ASSERTS),
    Program("lying object, asserts", _LIAR.format(base="object", value=""), 0.0, "wrong", ASSERTS),
    Program("lying metaclass", "class M(type):\n    def __eq__(a, b): return True\n    def __hash__(a): return hash(int)\nclass X(metaclass=M):\n    def __eq__(a, b): return True\ndef square(n): return X()", 0.0, "wrong", ASSERTS),
    Program("early exit, script", "import os\nos._exit(0)", 0.0, "wrong"),
    Program("early exit, call", "import os\nos._exit(0)", 0.0, "exception", CALLS),
    Program("early exit in the call", "import os\ndef square(n): os._exit(0)", 0.0, "exception", CALLS),
    Program("early exit, asserts", "import os\ndef square(n): os._exit(0)", 0.0, "wrong", ASSERTS),
    Program("exit at load, asserts", "import sys\nsys.exit(0)", 0.0, "wrong", ASSERTS),
    Program("assertions caught", "import sys\ndef square(n):\n    sys.excepthook = lambda *a: None\n    sys.settrace(lambda *a: None)\n    raise SystemExit(0)", 0.0, "wrong", ASSERTS),
    Program("patched builtins, wrong", "import builtins, json\nbuiltins.len = lambda x: 0\nbuiltins.isinstance = lambda *a: True\njson.dumps = lambda *a, **k: '9'\nbuiltins.type = lambda x: int\ndef square(n): return 0", 0.0, "wrong", CALLS),
    Program("patched builtins, right", "import builtins, json\nbuiltins.len = lambda x: 0\nbuiltins.isinstance = lambda *a: True\njson.dumps = json.loads = None\ndef square(n): return n * n", 1.0, "correct", CALLS),
    Program("patched equality of asserts", "import builtins\nbuiltins.AssertionError = SystemExit\nbuiltins.int.__eq__ if True else 0\ndef square(n): return 0", 0.0, "wrong", ASSERTS),
    Program("replaced stdout", "import sys, io\nsys.stdout = io.StringIO()\nprint(int(input()) ** 2)", 0.0, "wrong"),
    Program("stdout is None", "import sys\nn = int(input())\nsys.stdout.write(str(n * n))\nsys.stdout = None", 1.0, "correct"),
    Program("closed descriptors", "import os\nos.closerange(0, 64)", 0.0, "any"),
    Program("forged reply on every descriptor", "import os\nfor fd in range(64):\n    try: os.write(fd, b'0 0 value 9\\n')\n    except OSError: pass\ndef square(n): return 0", 0.0, "wrong", CALLS),
    Program("forged reply with the nonce", "import gc, os\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Server':\n        for i in range(3): os.write(4, f'{o._nonce} {i} value 9\\n'.encode())\ndef square(n): return 0", 0.0, "wrong", CALLS),
    Program("forged replies ahead of asserts", "import gc, os\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Server':\n        for i in range(9): os.write(4, f'{o._nonce} {i} value true\\n'.encode())\ndef square(n): return 0", 0.0, "wrong", ASSERTS),
    Program("forged verdict", "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'passed')\n    except OSError: pass\nos._exit(0)", 0.0, "wrong", ASSERTS),
    Program("a bomb for the reader", "import gc, os\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Server':\n        os.write(4, (o._nonce + ' 0 value {\"deque\": {\"range\": [0, 1000000000000, 1]}}\\n').encode())\ndef square(n): return 0", 0.0, "wrong", CALLS),
    Program("nested reply", "import gc, os\nfor o in gc.get_objects():\n    if type(o).__name__ == 'Server':\n        os.write(4, (o._nonce + ' 0 value ' + '[' * 50000 + '\\n').encode())\ndef square(n): return 0", 0.0, "wrong", CALLS),
    Program("expected values in memory", "import gc\ndef f(n):\n    for o in gc.get_objects():\n        if type(o) in (list, tuple, dict):\n            for v in (o.values() if type(o) is dict else o):\n                if type(v) is int and v % 1000000 in (321987, 789123): return v\n    return 0", 0.0, "wrong", json.dumps({"inputs": [[3], [4]], "outputs": [987654321987, 123456789123], "fn_name": "f"})),
    Program("expected values of asserts", "import gc, sys\ndef f(n):\n    frame, found = sys._getframe(), 0\n    while frame:\n        for v in list(frame.f_locals.values()) + list(frame.f_code.co_consts):\n            if type(v) is int and v % 1000000 == 321987 and v > 10**9: found = v\n        frame = frame.f_back\n    return found", 0.0, "wrong", json.dumps({"test_list": ["assert f(3) == 987654321987"]})),
    Program("tests by argv and files", "import sys, os\nfound = [a for a in sys.argv if 'outputs' in a] + [f for f in os.listdir('.')]\nprint(9 if found else 0)", 0.0, "wrong"),
    Program("ignored signals", "import signal\nfor s in (signal.SIGTERM, signal.SIGXCPU, signal.SIGALRM, signal.SIGINT, signal.SIGHUP):\n    signal.signal(s, signal.SIG_IGN)\nwhile True: pass", 0.0, "time_limit", ONE),
    Program("kills itself", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", 0.0, "crashed"),
    Program("aborts", "import os\nos.abort()", 0.0, "crashed"),
    Program("segmentation fault", "import ctypes\nctypes.string_at(0)", 0.0, "crashed"),
    Program("many files", "i = 0\nwhile True:\n    open(str(i), 'w').close()\n    i += 1\n    if i > 3000: import time; time.sleep(9)", 0.0, "output_limit"),
    Program("many threads", "import threading, time\nthreading.stack_size(32768)\nfor _ in range(200): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()", 0.0, "any"),
    Program("descriptors", "import os\nfound = []\nfor fd in range(1024):\n    try: os.fstat(fd); found.append(fd)\n    except OSError: pass\nprint(found)", 1.0, "correct", json.dumps({"inputs": [""], "outputs": ["[0, 1, 2]"]})),
    Program("descriptors of a call", "import os\ndef f():\n    found = []\n    for fd in range(1024):\n        try: os.fstat(fd); found.append(fd)\n        except OSError: pass\n    return found", 1.0, "correct", json.dumps({"inputs": [[]], "outputs": [[0, 1, 2, 3, 4]], "fn_name": "f"})),
    tries("fork", "for _ in range(24):\n    if os.fork() == 0: os._exit(0)"),
    tries("vfork by number", "call(58 if os.uname().machine == 'x86_64' else 9999)"),
    tries("clone without a thread", "call(56 if os.uname().machine == 'x86_64' else 220, 17, 0, 0, 0, 0)"),
    tries("clone3", "call(435, 0, 0)"),
    tries("a new user namespace", "call(272 if os.uname().machine == 'x86_64' else 97, 0x10000000)"),
    tries("subprocess", "import subprocess\nsubprocess.run(['/bin/true'])"),
    tries("exec", "os.execv('/bin/sh', ['sh', '-c', 'echo held'])"),
    tries("spawn", "os.posix_spawn('/bin/true', ['true'], {})"),
    tries("multiprocessing", "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=print)\np.start()"),
    tries("a socket", "socket.socket()"),
    tries("a connection", "socket.create_connection(('127.0.0.1', LISTENER), 1)"),
    tries("a local socket", "socket.socket(socket.AF_UNIX)"),
    tries("a pair of sockets", "socket.socketpair()"),
    tries("a listener", "socket.create_server(('127.0.0.1', 0))"),
    tries("signal the parent", "os.kill(os.getppid(), signal.SIGTERM)"),
    tries("signal the checker", "os.kill(PARENT, signal.SIGTERM)"),
    tries("signal everyone", "os.kill(-1, signal.SIGTERM)"),
    tries("signal by ownership", "import fcntl\nr, w = os.pipe()\nfcntl.fcntl(r, 8, PARENT)"),
    tries("ptrace", "call(101 if os.uname().machine == 'x86_64' else 117, 16, PARENT, 0, 0)"),
    tries("read another's memory", "call(310 if os.uname().machine == 'x86_64' else 270, PARENT, 0, 0, 0, 0, 0)"),
    tries("pidfd", "os.pidfd_open(os.getppid())"),
    tries("read outside", "open('OUTSIDE').read()"),
    tries("write outside", "open('OUTSIDE', 'w')"),
    tries("list outside", "os.listdir(os.path.dirname('OUTSIDE'))"),
    tries("list the root", "os.listdir('/')"),
    tries("passwords", "open('/etc/passwd').read()"),
    tries("remove outside", "os.remove('OUTSIDE')"),
    tries("rename outside", "os.rename('OUTSIDE', 'here')"),
    tries("chmod outside", "os.chmod('OUTSIDE', 0o777)"),
    tries("chown outside", "os.chown('OUTSIDE', 0, 0)"),
    tries("touch outside", "os.utime('OUTSIDE')"),
    tries("truncate outside", "os.truncate('OUTSIDE', 0)"),
    tries("attributes outside", "os.setxattr('OUTSIDE', 'user.x', b'1')"),
    tries("hard link outside", "os.link('OUTSIDE', 'link')"),
    tries("symbolic link", "os.symlink('OUTSIDE', 'link')\nopen('link').read()"),
    tries("a folder", "os.mkdir('deeper')"),
    tries("a device", "os.mknod('null', 0o20666, os.makedev(1, 3))"),
    tries("a fifo", "os.mkfifo('pipe')"),
    tries("write to Python's library", "open(os.__file__, 'a')"),
    tries("/proc/self", "open('/proc/self/environ').read()"),
    tries("/proc of the parent", "open(f'/proc/{os.getppid()}/cmdline').read()"),
    tries("descriptors by /proc", "os.listdir('/proc/self/fd')"),
    tries("/sys", "os.listdir('/sys')"),
    tries("the terminal", "open('/dev/tty')"),
    tries("shared memory", "open('/dev/shm/x', 'w')"),
    tries("System V memory", "call(29 if os.uname().machine == 'x86_64' else 194, 0, 4096, 0o1600)"),
    tries("memfd", "os.memfd_create('x')"),
    tries("io_uring", "call(425, 1, 0)"),
    tries("bpf", "call(321 if os.uname().machine == 'x86_64' else 280, 0, 0, 0)"),
    tries("mount", "call(165 if os.uname().machine == 'x86_64' else 40, b'none', b'.', b'tmpfs', 0, 0)"),
    tries("chroot", "os.chroot('.')"),
    tries("another user", "os.setuid(0)"),
    tries("limits raised", "resource.setrlimit(resource.RLIMIT_CPU, (9999, 9999))"),
    tries("limits of the parent", "resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))"),
    tries("nicer", "os.setpriority(os.PRIO_PROCESS, 0, -5)"),
    tries("a large file", "open('big', 'wb').write(bytes(64 << 20))"),
    tries("many descriptors", "for _ in range(100): os.dup(0)"),
    tries("environment", "if not os.environ: raise OSError('nothing there')"),
    tries("another session", "os.setsid()"),
    tries("death signal", "if libc.prctl(1, 0, 0, 0, 0): raise OSError('refused')"),
)  # fmt: skip

ALL = (*HONEST, *BROKEN, *HOSTILE)
