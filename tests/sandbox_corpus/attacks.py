"""The attacks, by category. See `entry.py` for the detectors and placeholders."""

from __future__ import annotations

from .calls import COLUMN, MAY_BE_SILENT, PRELUDE, REACHED, SILENT_UNPROTECTED, SURFACE
from .entry import Attack, family

SHOW = "result_image = image\n"

# Opening a file at C level without Python's open: the numbers differ by machine, openat does not take part.
OPEN = (2, None)[COLUMN]
OPENAT = (257, 56)[COLUMN]

FILES_READ = family("files", "token", {
    "open": "print(open('{secret_file}').read())",
    "open bytes": "print(open(b'{secret_file}', 'rb').read())",
    "os.open": "import os\nprint(os.read(os.open('{secret_file}', 0), 99))",
    "io.FileIO": "import io\nprint(io.FileIO('{secret_file}').read())",
    "io.open_code": "import io\nprint(io.open_code('{secret_file}').read())",
    "codecs": "import codecs\nprint(codecs.open('{secret_file}').read())",
    "pathlib": "from pathlib import Path\nprint(Path('{secret_file}').read_text())",
    "fileinput": "import fileinput\nprint(*fileinput.input('{secret_file}'))",
    "linecache": "import linecache\nprint(linecache.getlines('{secret_file}'))",
    "tokenize": "import tokenize\nprint(tokenize.open('{secret_file}').read())",
    "np.fromfile": "print(np.fromfile('{secret_file}', dtype=np.uint8).tobytes())",
    "np.memmap": "print(bytes(np.memmap('{secret_file}', mode='r')))",
    "np.genfromtxt": "print(np.genfromtxt('{secret_file}', dtype=str))",
    "np.loadtxt": "print(np.loadtxt('{secret_file}', dtype=str))",
    "np.lib DataSource": "print(np.lib.npyio.DataSource().open('{secret_file}').read())",
    "mmap": "import mmap\nf = open('{secret_file}')\nprint(mmap.mmap(f.fileno(), 0, prot=1)[:])",
    "PIL raw decoder": "import os\nn = os.path.getsize('{secret_file}')\nresult_image = Image.frombytes('L', (n, 1), open('{secret_file}', 'rb').read())",
    "picture of the file": "d = np.fromfile('{secret_file}', np.uint8)\nresult_image = Image.fromarray(d[None, :])",
    "importlib loader": "import importlib.machinery as m\nprint(m.SourceFileLoader('x', '{secret_file}').get_data('{secret_file}'))",
    "configparser": "import configparser\nc = configparser.ConfigParser()\nc.read_string('[a]\\nb=' + open('{secret_file}').read())\nprint(c['a']['b'])",
    "C fopen": "import ctypes\nc = ctypes.CDLL(None)\nc.fopen.restype = ctypes.c_void_p\nc.fgets.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]\nb = ctypes.create_string_buffer(99)\nf = c.fopen(b'{secret_file}', b'r')\nif f: c.fgets(b, 98, f)\nprint(b.value)",
    "C openat": PRELUDE + f"fd = call({OPENAT}, -100, b'{{secret_file}}', 0, 0)[0]\nimport os\nprint(os.read(fd, 99))",
    "C openat2": PRELUDE + "import os, struct\nhow = ctypes.create_string_buffer(24)\nfd = call(437, -100, b'{secret_file}', how, 24)[0]\nprint(os.read(fd, 99))",
    "swallowing": "for f in (open, __import__('io').open, __import__('os').open):\n    try:\n        print(f('{secret_file}', *([0] if 'posix' in repr(f) else [])).read())\n    except Exception:\n        pass\n" + SHOW,
    "error as channel": "raise ValueError(open('{secret_file}').read())",
    "shutil": "import shutil, io, sys\nshutil.copyfileobj(open('{secret_file}'), sys.stdout)",
    "zipfile neighbour": "import gzip, io\nprint(gzip.compress(open('{secret_file}', 'rb').read(), 0))",
    "proc root": "print(open('/proc/{caller}/root{secret_file}').read())",
    "proc cwd": "import os\nos.chdir('/proc/{caller}/cwd')\nprint(open('{secret_file}').read())",
    "relative climb": "print(open('../' * 30 + '{secret_file}'[1:]).read())",
})  # fmt: skip

METADATA = family("files", "escaped", {
    "stat": "import os\nos.stat('{secret_file}')\nprint('ESCAPED')",
    "lstat": "import os\nos.lstat('{secret_file}')\nprint('ESCAPED')",
    "access": "import os\nprint('ESCAPED' if os.access('{secret_file}', 0) else '')",
    "exists": "import os\nprint('ESCAPED' if os.path.exists('{secret_file}') else '')",
    "getsize of root": "import os\nos.path.getsize('/')\nprint('ESCAPED', os.stat('/').st_ino) if os.listdir('/') else 0",
    "listdir": "import os\nprint('ESCAPED' if os.listdir('/') else '')",
    "scandir": "import os\nprint('ESCAPED' if list(os.scandir('/etc')) else '')",
    "glob": "import glob\nprint('ESCAPED' if glob.glob('/etc/*') else '')",
    "walk": "import os\nprint('ESCAPED' if list(os.walk('/etc')) else '')",
    "statvfs": "import os\nos.statvfs('/')\nprint('ESCAPED')",
    "xattr": "import os\nos.listxattr('{secret_file}')\nprint('ESCAPED')",
    "readlink": "import os\nos.readlink('/proc/self/exe')\nprint('ESCAPED')",
    "chdir": "import os\nos.chdir('/etc')\nprint('ESCAPED')",
    "newfstatat with empty-path flag": PRELUDE + f"if call({(262, 79)[COLUMN]}, -100, b'{{secret_file}}', buf, 0x1000)[0] == 0: print('ESCAPED')",
    "statx": PRELUDE + f"if call({(332, 291)[COLUMN]}, -100, b'{{secret_file}}', 0x1000, 0xfff, buf)[0] == 0: print('ESCAPED')",
    "faccessat2": PRELUDE + "if call(439, -100, b'{secret_file}', 0, 0)[0] == 0: print('ESCAPED')",
    "importable": "import importlib.util, sys\nsys.path.append('{folder}')\nprint('ESCAPED' if importlib.util.find_spec('bait') else '')",
    "readable maps": "print('ESCAPED' if open('/proc/self/maps').read() else '')",
    "dev zero": "print('ESCAPED' if open('/dev/zero', 'rb').read(1) else '')",
    "font files": "from PIL import ImageFont\nimport glob\nImageFont.truetype('DejaVuSans.ttf') if 0 else open('/etc/passwd')\nprint('ESCAPED')",
})  # fmt: skip

FILES_WRITE = family("files", "folder", {
    "open w": "open('{folder}/new', 'w').write('x')",
    "open a": "open('{folder}/bait.py', 'a').write('x')",
    "truncate": "import os\nos.truncate('{folder}/bait.py', 0)",
    "unlink": "import os\nos.unlink('{folder}/bait.py')",
    "rename": "import os\nos.rename('{folder}/bait.py', '{folder}/other')",
    "mkdir": "import os\nos.mkdir('{folder}/d')",
    "symlink": "import os\nos.symlink('/', '{folder}/l')",
    "hard link": "import os\nos.link('{folder}/bait.py', '{folder}/h')",
    "mkfifo": "import os\nos.mkfifo('{folder}/f')",
    "chmod": "import os\nos.chmod('{folder}/bait.py', 0o777)",
    "utime": "import os\nos.utime('{folder}/bait.py', (1, 1))",
    "rmtree": "import shutil\nshutil.rmtree('{folder}')",
    "copy": "import shutil\nshutil.copy('{folder}/bait.py', '{folder}/c')",
    "tempfile": "import tempfile\ntempfile.NamedTemporaryFile(dir='{folder}', delete=False).write(b'x')",
    "image.save": "image.save('{folder}/x.png')",
    "np.save": "np.save('{folder}/x.npy', np.ones(3))",
    "tofile": "np.ones(3).tofile('{folder}/x.bin')",
    "np.savetxt": "np.savetxt('{folder}/x.txt', np.ones(3))",
    "memmap w": "np.memmap('{folder}/m', mode='w+', shape=(3,))[:] = 1",
    "shelve": "import shelve\nshelve.open('{folder}/s')['a'] = 1",
    "zipfile": "import zipfile\nzipfile.ZipFile('{folder}/z', 'w').writestr('a', 'b')",
    "logging": "import logging\nlogging.FileHandler('{folder}/log').stream.write('x')",
    "at exit": "import atexit\natexit.register(lambda: open('{folder}/late', 'w').write('x'))\n" + SHOW,
    "in a destructor": "class D:\n    def __del__(self): open('{folder}/late', 'w').write('x')\nd = D()\n" + SHOW,
    "unix socket file": "import socket\nsocket.socket(socket.AF_UNIX).bind('{folder}/sock')",
    "py compile": "import py_compile\npy_compile.compile('{folder}/bait.py', '{folder}/c.pyc')",
})  # fmt: skip

ENVIRONMENT = family("secrets", "token", {
    "os.environ": "import os\nprint(dict(os.environ))",
    "getenv": "import os\nprint(os.getenv('OPENAI_API_KEY'))",
    "environb": "import os\nprint(os.environb)",
    "C environ": "import ctypes\ne = ctypes.POINTER(ctypes.c_char_p).in_dll(ctypes.CDLL(None), 'environ')\ni = 0\nwhile e[i]:\n    print(e[i]); i += 1",
    "own /proc environ": "print(open('/proc/self/environ').read())",
    "caller's environ": "print(open('/proc/{caller}/environ').read())",
    "parent's environ": "import os\nprint(open(f'/proc/{os.getppid()}/environ').read())",
    "all environs": "import glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n    try: print(open(p).read())\n    except OSError: pass",
    "shell env": "import subprocess\nprint(subprocess.run('env', capture_output=True).stdout)",
    "own memory": "import gc, os\nprint(gc.get_referents(*gc.get_referents(os.environ)))\nfor o in gc.get_objects():\n    if isinstance(o, dict) and 'API_KEY' in o: print(o['API_KEY'])",
    "frames above": "import sys\nf = sys._getframe()\nwhile f:\n    print({k: v for k, v in f.f_globals.items() if 'KEY' in k}, {k: v for k, v in f.f_locals.items() if 'KEY' in k}); f = f.f_back",
    "traceback frames": "try:\n    1 / 0\nexcept Exception as e:\n    f = e.__traceback__.tb_frame\n    while f:\n        print(f.f_locals.get('API_KEY')); f = f.f_back",
    "main module": "import sys\nprint(vars(sys.modules['__main__']).get('API_KEY'))",
    "interactive inspection": "import inspect\nfor i in inspect.stack():\n    print(i.frame.f_globals.get('API_KEY'))",
    "caller's memory file": "import re\nm = open('/proc/{caller}/maps').read()\nfor l in m.splitlines():\n    if 'rw' in l:\n        a, b = (int(v, 16) for v in l.split()[0].split('-'))\n        try:\n            f = open('/proc/{caller}/mem', 'rb', 0); f.seek(a); d = f.read(b - a)\n            i = d.find(b'sk-distil-')\n            if i >= 0: print(d[i:i + 50])\n        except (OSError, ValueError, OverflowError, MemoryError): pass",
    "process_vm_readv": PRELUDE + "import re\nfor l in open('/proc/{caller}/maps').read().splitlines():\n    if 'rw' not in l: continue\n    a, b = (int(v, 16) for v in l.split()[0].split('-'))\n    if b - a > 1 << 26: continue\n    d = ctypes.create_string_buffer(b - a)\n    class V(ctypes.Structure): _fields_ = [('p', ctypes.c_size_t), ('n', ctypes.c_size_t)]\n    here, there = V(ctypes.addressof(d), b - a), V(a, b - a)\n    libc.process_vm_readv({caller}, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)\n    i = d.raw.find(b'sk-distil-')\n    if i >= 0: print(d.raw[i:i + 50])",
    "ptrace peek": PRELUDE + "import time\nif libc.ptrace(16, {caller}, 0, 0) == 0:\n    print(open('/proc/{caller}/environ').read())\n    time.sleep(.1); libc.ptrace(17, {caller}, 0, 0)",
    "inherited descriptors": "import os\nfor fd in range(3, 64):\n    try: print(os.pread(fd, 4096, 0))\n    except OSError: pass",
    "command line": "import glob\nfor p in glob.glob('/proc/[0-9]*/cmdline'): print(open(p).read())",
    "auxiliary vector and stack": "import ctypes\nl = ctypes.CDLL(None)\nl.getauxval.restype = ctypes.c_ulong\np = l.getauxval(31)\nprint(ctypes.string_at(p - 20000, 20000) if p else '')",
    "home folder": "import os\nprint(open(os.path.expanduser('{secret_file}')).read())",
    "pidfd_getfd": PRELUDE + "import os\np = call(434, {caller}, 0)[0]\nfor n in range(64):\n    fd = call(438, p, n, 0)[0]\n    if fd >= 0:\n        try: print(os.pread(fd, 999, 0))\n        except OSError: pass",
})  # fmt: skip

NETWORK = [
    *family("network", "network", {
        "tcp": "import socket\nsocket.create_connection(('127.0.0.1', {tcp}), 2).send(b'x')",
        "udp": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {udp}))",
        "unix": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('{unix}')",
        "urllib": "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{tcp}', timeout=1)",
        "http.client": "import http.client\nc = http.client.HTTPConnection('127.0.0.1', {tcp}, timeout=1)\nc.request('GET', '/')",
        "C socket": PRELUDE + "import struct\ns = libc.socket(2, 1, 0)\na = struct.pack('<H', 2) + struct.pack('>H', {tcp}) + bytes([127, 0, 0, 1]) + bytes(8)\nlibc.connect(s, a, 16)",
        "ipv6 mapped": "import socket\ns = socket.socket(socket.AF_INET6)\ns.connect(('::ffff:127.0.0.1', {tcp}))",
        "shell": "import os\nos.system('{python} -c \"import socket; socket.create_connection((\\'127.0.0.1\\', {tcp}))\"')",
        "asyncio": "import asyncio\nasync def f():\n    await asyncio.open_connection('127.0.0.1', {tcp})\nasyncio.run(f())",
        "ftplib": "import ftplib\nftplib.FTP().connect('127.0.0.1', {tcp}, timeout=1)",
        "smtplib": "import smtplib\nsmtplib.SMTP('127.0.0.1', {tcp}, timeout=1)",
        "dns by udp": "import socket\ns = socket.socket(2, 2)\ns.connect(('127.0.0.1', {udp}))\ns.send(b'q')",
        "syslog handler": "import logging.handlers\nlogging.handlers.SysLogHandler(('127.0.0.1', {udp})).emit(__import__('logging').makeLogRecord({}))",
    }),
    *family("network", "escaped", {
        "listen": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nprint('ESCAPED')",
        "socketpair": "import socket\nsocket.socketpair()\nprint('ESCAPED')",
        "raw": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_RAW, 1)\nprint('ESCAPED')",
        "packet": "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint('ESCAPED')",
        "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\nprint('ESCAPED')",
        "abstract unix": "import socket\nsocket.socket(socket.AF_UNIX).bind('\\0distil-test')\nprint('ESCAPED')",
        "vsock": "import socket\nsocket.socket(40, 1)\nprint('ESCAPED')",
        "host name": "import socket\nprint('ESCAPED', socket.gethostname())",
        "name lookup": "import socket\nsocket.getaddrinfo('localhost', 80)\nprint('ESCAPED')",
        "interfaces": "import socket\nprint('ESCAPED' if socket.if_nameindex() else '')",
    }),
]  # fmt: skip

PROCESSES = [
    *family("processes", "escaped", {
        "fork": "import os\nif os.fork() == 0: os._exit(0)\nprint('ESCAPED')",
        "forkpty": "import os\nif os.forkpty()[0] == 0: os._exit(0)\nprint('ESCAPED')",
        "system": "import os\nif os.system('true') == 0: print('ESCAPED')",
        "popen": "import os\nprint('ESCAPED' if os.popen('echo 1').read() else '')",
        "subprocess": "import subprocess\nsubprocess.run(['true'])\nprint('ESCAPED')",
        "posix_spawn": "import os\nos.posix_spawn('/bin/true', ['true'], {})\nprint('ESCAPED')",
        "exec": "import os\nos.execv('/bin/echo', ['echo', 'ESCAPED'])",
        "C fork": "import ctypes, os\np = ctypes.CDLL(None).fork()\nif p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
        "C system": "import ctypes\nif ctypes.CDLL(None).system(b'true') == 0: print('ESCAPED')",
        "clone": PRELUDE + f"import os\np = call({(56, 220)[COLUMN]}, 17, 0, 0, 0, 0)[0]\nif p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
        "clone3": PRELUDE + "import os, struct\na = ctypes.create_string_buffer(struct.pack('<8Q', 0, 0, 0, 0, 17, 0, 0, 0), 64)\np = call(435, a, 64)[0]\nif p == 0: os._exit(0)\nif p > 0: print('ESCAPED')",
        "multiprocessing": "import multiprocessing\np = multiprocessing.get_context('fork').Process(target=print)\np.start()\np.join()\nprint('ESCAPED')",
        "thread": "import threading\nt = threading.Thread(target=print)\nt.start()\nprint('ESCAPED')",
        "thread pool": "from concurrent.futures import ThreadPoolExecutor\nprint('ESCAPED', ThreadPoolExecutor(2).submit(int).result())",
        "_thread": "import _thread\n_thread.start_new_thread(print, ())\nprint('ESCAPED')",
        "C thread": "import ctypes\nl = ctypes.CDLL(None)\nt = ctypes.c_ulong()\nif l.pthread_create(ctypes.byref(t), None, l.getpid, None) == 0: print('ESCAPED')",
        "setsid": "import os\nos.setpgid(0, 0)\nprint('ESCAPED')",
        "setuid": "import os\nos.setresuid(os.getuid(), os.getuid(), os.getuid())\nprint('ESCAPED')",
        "nice": "import os\nos.nice(1)\nprint('ESCAPED')",
        "umask": "import os\nos.umask(0o22)\nprint('ESCAPED')",
        "self signal": "import os, signal\nsignal.signal(10, lambda *a: print('ESCAPED'))\nos.kill(os.getpid(), 10)",
        "raise_signal": "import signal\nsignal.signal(10, lambda *a: print('ESCAPED'))\nsignal.raise_signal(10)",
        "alarm": "import signal, time\nsignal.signal(14, lambda *a: print('ESCAPED'))\nsignal.setitimer(signal.ITIMER_REAL, .05)\ntime.sleep(.3)",
        "pidfd self": "import os\nos.pidfd_open(os.getpid())\nprint('ESCAPED')",
        "others alive": "import os\nos.kill({caller}, 0)\nprint('ESCAPED')",
        "others' groups": "import os\nprint('ESCAPED', os.getpgid({caller}))",
        "others' session": "import os\nprint('ESCAPED', os.getsid({caller}))",
        "others' scheduling": "import os\nprint('ESCAPED', os.sched_getscheduler({caller}))",
        "others' affinity": "import os\nprint('ESCAPED', os.sched_getaffinity({caller}))",
        "others' priority": "import os\nprint('ESCAPED', os.getpriority(0, {caller}))",
        "others' limits": "import resource\nprint('ESCAPED', resource.prlimit({caller}, resource.RLIMIT_NOFILE))",
        "others' clock": "import time\nprint('ESCAPED', time.clock_gettime(~{caller} << 3 | 2))",
        "wait": "import os\ntry: os.waitpid(-1, os.WNOHANG)\nexcept ChildProcessError: pass\nprint('ESCAPED')",
    }),
    *family("processes", "victim", {
        "kill": "import os\nos.kill({victim}, 9)",
        "stop": "import os\nos.kill({victim}, 19)",
        "C kill": "import ctypes\nctypes.CDLL(None).kill({victim}, 9)",
        "sigqueue": PRELUDE + f"call({(129, 138)[COLUMN]}, {{victim}}, 9, buf)\ncall({(62, 129)[COLUMN]}, {{victim}}, 9)",
        "tgkill": PRELUDE + f"call({(234, 131)[COLUMN]}, {{victim}}, {{victim}}, 9)",
        "tkill": PRELUDE + f"call({(200, 130)[COLUMN]}, {{victim}}, 9)",
        "pidfd": "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open({victim}), 9)",
        "ptrace kill": PRELUDE + "import time\nlibc.ptrace(16, {victim}, 0, 0)\ntime.sleep(.2)\nlibc.ptrace(8, {victim}, 0, 0)",
        "shell kill": "import os\nos.system('kill -9 {victim}')",
    }),
    Attack("processes", "kill everything", "import os\nfor n in (9, 15, 19):\n    try: os.kill(-1, n)\n    except OSError: pass",
           "victim", unprotected="it would end every process of the machine"),
    Attack("processes", "kill the parent", "import os\nos.kill(os.getppid(), 9)\nprint('ESCAPED')", "escaped",
           unprotected="it would end the process that shows it"),
    Attack("processes", "fork bomb", "import os\nfor _ in range(64):\n    try:\n        if os.fork() == 0: os._exit(0)\n        print('ESCAPED')\n    except OSError: pass", "escaped"),
]  # fmt: skip

# A filter answers EPERM, and so may a kernel without the feature: shown to fire where the kernel answers.
KERNEL = [
    Attack("kernel", name, PRELUDE + REACHED.replace("{number}", str(row[COLUMN])).replace("{arguments}", row[2]), "escaped",
           unprotected=SILENT_UNPROTECTED if name in MAY_BE_SILENT else "")
    for name, row in SURFACE.items()
    if row[COLUMN] is not None
] + [
    Attack("kernel", "alg socket", PRELUDE + REACHED.replace("{number}", str((41, 198)[COLUMN])).replace("{arguments}", "38, 5, 0"), "escaped"),
    Attack(
        "kernel",
        "every other call",
        PRELUDE
        + """
allowed = {allowed}
for number in list(range(600)) + [0x40000000 - 1]:
    if number in allowed: continue
    result, error = call(number, -1, -1, -1, -1, -1, -1)
    if result >= 0 or error not in (1, 25, 38): print('ESCAPED', number, result, error)
""",
        "escaped",
        unprotected="some of these calls with these arguments would harm the machine",
    ),
    Attack("kernel", "x32 calls", PRELUDE + "r, e = call(0x40000000 + 39)\nprint('ESCAPED' if e != 38 else '')", "escaped",
           unprotected="the kernel may be built without x32"),
    Attack(
        "kernel",
        "i386 calls",
        PRELUDE
        + """
import mmap
# int 0x80 from 64-bit code: getpid of the i386 table; needs memory that can be executed.
code = b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3"
m = mmap.mmap(-1, 4096, prot=7)
m.write(code)
f = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(m)))
print('ESCAPED', f())
""",
        "escaped",
        unprotected="only on x86_64 with 32-bit emulation",
    ),
    Attack("kernel", "executable memory", "import mmap\nmmap.mmap(-1, 4096, prot=7)\nprint('ESCAPED')", "escaped"),
    Attack("kernel", "make memory executable", PRELUDE + "import mmap\nm = mmap.mmap(-1, 4096, prot=3)\na = ctypes.addressof(ctypes.c_char.from_buffer(m))\nlibc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]\nif libc.mprotect(a, 4096, 5) == 0: print('ESCAPED')", "escaped"),
    Attack("kernel", "raise limits", "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, resource.getrlimit(resource.RLIMIT_NOFILE))\nprint('ESCAPED')", "escaped"),
    Attack("kernel", "host name and kernel release", "import os\nprint('ESCAPED', os.uname())", "escaped"),
    Attack("kernel", "load average", "import os\nopen('/proc/loadavg').read()\nprint('ESCAPED')", "escaped"),
    Attack("kernel", "capabilities", "print('ESCAPED' if 'CapEff' in open('/proc/self/status').read() else '')", "escaped"),
    Attack("kernel", "shared memory", "from multiprocessing import shared_memory\nshared_memory.SharedMemory(create=True, size=99).unlink()\nprint('ESCAPED')", "escaped"),
]  # fmt: skip

TIME = [
    *family("time", "overtime", {
        "busy loop": "while True: pass",
        "sleep": "import time\ntime.sleep(999)",
        "swallow everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "ignore signals": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        "block signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "C hang": "import ctypes\nctypes.CDLL(None).pause()\nctypes.CDLL(None).sleep(999)\nwhile True: pass",
        "C hang with the GIL": "import ctypes\nctypes.PyDLL(None).usleep(999 * 10**6)\nwhile True: pass",
        "big power": "x = 9 ** 9 ** 8",
        "regex": "import re\nre.match('(a+)+$', 'a' * 64 + 'b')",
        "numpy loop": "a = np.ones(10**7)\nwhile True: a.sort()",
        "infinite sum": "sum(iter(int, 1))",
        "read own stdin forever": "import os\nwhile True:\n    try: os.read(3, 1)\n    except OSError: pass",
        "while printing": "while True: print('x')",
        "in a destructor": "class D:\n    def __del__(self):\n        while True: pass\nd = D()\ndel d",
        "in the result's size": "class I(Image.Image):\n    @property\n    def size(self):\n        while True: pass\nresult_image = I()",
        "in an error's text": "class E(Exception):\n    def __str__(self):\n        while True: pass\nraise E",
        "in the import hook": "import sys\nclass F:\n    def find_spec(self, *a):\n        while True: pass\nsys.meta_path.insert(0, F())\nimport nothing_at_all",
        "trace function": "import sys\ndef t(*a):\n    while True: pass\nsys.settrace(t)\n(lambda: 0)()",
        "lock": "import threading\nl = threading.Lock()\nl.acquire()\nl.acquire()",
        "nested generators": "def g():\n    while True: yield from iter(int, 1)\nlist(g())",
    }),
]  # fmt: skip

MEMORY = family("memory", "escaped", {
    "bytes": "b = b'x' * 900_000_000\nprint('ESCAPED')",
    "bytearray": "b = bytearray(900_000_000)\nprint('ESCAPED')",
    "numpy ones": "a = np.ones(120_000_000)\nprint('ESCAPED')",
    "numpy untouched": "a = np.empty(900_000_000, np.uint8)\nprint('ESCAPED')",
    "list": "l = [0] * 120_000_000\nprint('ESCAPED')",
    "growing list": "l = []\nfor i in range(60): l.append(bytearray(16 << 20))\nprint('ESCAPED')",
    "growing and swallowing": "l = []\nn = 0\nfor i in range(60):\n    try:\n        l.append(bytearray(16 << 20)); n += 1\n    except MemoryError: pass\nif n > 50: print('ESCAPED')",
    "big picture": "i = Image.new('RGB', (16000, 16000))\nprint('ESCAPED')",
    "shared map": "import mmap\nm = mmap.mmap(-1, 900_000_000)\nprint('ESCAPED')",
    "private map": "import mmap\nm = mmap.mmap(-1, 900_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\nprint('ESCAPED')",
    "C malloc": "import ctypes\nl = ctypes.CDLL(None)\nl.malloc.restype = ctypes.c_void_p\nif l.malloc(ctypes.c_size_t(900_000_000)): print('ESCAPED')",
    "brk": "import ctypes\nl = ctypes.CDLL(None)\nl.sbrk.restype = ctypes.c_void_p\nl.sbrk.argtypes = [ctypes.c_long]\nif l.sbrk(900_000_000) not in (None, 2**64 - 1): print('ESCAPED')",
    "zip bomb": "import zlib\nd = zlib.compress(bytes(10**6) , 9)\nz = zlib.decompress(zlib.compress(bytes(200_000_000)) )\ny = z * 5\nprint('ESCAPED')",
    "string doubling": "s = 'x'\nwhile len(s) < 900_000_000: s += s\nprint('ESCAPED')",
    "integer": "x = 1 << 7_200_000_000\nprint('ESCAPED')",
    "memfd": "import os\nfd = os.memfd_create('x')\nos.truncate(fd, 1 << 30)\nprint('ESCAPED')",
})  # fmt: skip

OUTPUT = [
    *family("output", "flood", {
        "print flood": "for i in range(10**6): print('x' * 99)\n" + SHOW,
        "one huge print": "print('x' * 10**8)\n" + SHOW,
        "stderr flood": "import sys\nfor i in range(10**5): print('y' * 99, file=sys.stderr)\n" + SHOW,
        "huge error": "raise ValueError('z' * 10**6)",
        "error with many lines": "raise ValueError('z\\n' * 10**6)",
        "error chain": "def f(n):\n    try:\n        raise ValueError(n * 'c')\n    except ValueError:\n        if n: f(n - 1)\n        raise\nf(90)",
        "exception group": "raise ExceptionGroup('g' * 999, [ValueError('h' * 9999) for _ in range(999)])",
        "syntax error with a long line": "x = " + "1 +" * 20000,
        "long type name": "raise type('T' * 10**6, (Exception,), {'__module__': 'm'})()",
        "warnings flood": "import warnings\nwarnings.simplefilter('always')\nfor i in range(10**4): warnings.warn('w' * 99)\n" + SHOW,
        "wide characters": "print('\\U0001F600' * 10**6)\n" + SHOW,
    }),
    *family("output", "forged", {
        "terminal escapes": "print('\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\u202e')\n" + SHOW,
        "escapes in an error": "raise ValueError('\\x1b[2J\\x00')",
        "lone surrogates": "raise ValueError('\\udfff')",
        "invalid utf-8": "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe\\x80')\n" + SHOW,
        "carriage returns": "print('good\\rbad')\n" + SHOW,
    }),
    *family("output", "escaped", {
        "write to a terminal": "open('/dev/tty', 'w').write('x') if 0 else open('/dev/full', 'w')\nprint('ESCAPED')",
        "descriptor 1": "import os\nos.write(1, b'ESCAPED')",
        "descriptor 2": "import os\nos.write(2, b'x')\nprint('ESCAPED')",
        "C printf": "import ctypes\nl = ctypes.CDLL(None)\nl.printf(b'ESCAPED\\n')\nl.fflush(None)",
        "more descriptors": "import os\nfor fd in list(range(64)) * 2:\n    try: os.dup(fd); print('ESCAPED')\n    except OSError: pass",
        "many pipes": "import os\nfor i in range(9): os.pipe()\nprint('ESCAPED')",
        "many files": "l = [open('/dev/null') for _ in range(20)]\nprint('ESCAPED')",
        "descriptors that are open": "import os\nn = 0\nfor fd in list(range(3)) + list(range(4, 256)):\n    try: os.fstat(fd); n += 1\n    except OSError: pass\nif n: print('ESCAPED', n)",
    }),
]  # fmt: skip

RAW = "import os, struct\ndef frame(kind, data=b'', length=None): os.write(3, struct.pack('<cI', kind, len(data) if length is None else length) + data)\nH = struct.Struct('<8sII4sHBHQ')\n"
NO_CHANNEL = "the code that runs without a sandbox has no such channel to write to"
REPLY = [
    *family("reply", "forged", {
        "junk": RAW + "os.write(3, os.urandom(9999))",
        "torn frame": RAW + "os.write(3, b'P')\nos._exit(0)",
        "torn picture": RAW + "frame(b'P', H.pack(b'RGB', 9, 9, b'', 0, 0, 0, 243) + b'x', 9999)\nos._exit(0)",
        "unknown kind": RAW + "frame(b'Z', b'x')",
        "ready again": RAW + "frame(b'R')",
        "huge picture": RAW + "frame(b'P', H.pack(b'RGB', 2**31, 2**31, b'', 0, 0, 0, 3 * 2**62 % 2**64), 2**32 - 1)",
        "too many pixels": RAW + "frame(b'P', H.pack(b'L', 9000, 9000, b'', 0, 0, 0, 81 * 10**6), H.size + 81 * 10**6)",
        "zero size": RAW + "frame(b'P', H.pack(b'L', 0, 7, b'', 0, 0, 0, 0))",
        "wrong byte count": RAW + "frame(b'P', H.pack(b'RGB', 9, 9, b'', 0, 0, 0, 1) + b'x')",
        "wrong frame length": RAW + "frame(b'P', H.pack(b'L', 2, 2, b'', 0, 0, 0, 4) + b'xxxx', 7)\nos.write(3, bytes(99))",
        "too long a frame": RAW + "frame(b'P', H.pack(b'L', 2, 2, b'', 0, 0, 0, 4) + b'xxxx' + b'y' * 99)",
        "unknown mode": RAW + "frame(b'P', H.pack(b'EVIL', 2, 2, b'', 0, 0, 0, 4) + b'xxxx')",
        "mode of other size": RAW + "frame(b'P', H.pack(b'RGBA', 2, 2, b'', 0, 0, 0, 4) + b'xxxx')",
        "palette on RGB": RAW + "frame(b'P', H.pack(b'RGB', 1, 1, b'RGB', 3, 0, 0, 3) + b'xxxyyy')",
        "palette of odd length": RAW + "frame(b'P', H.pack(b'P', 1, 1, b'RGB', 4, 0, 0, 1) + b'xxxxy')",
        "palette too long": RAW + "frame(b'P', H.pack(b'P', 1, 1, b'RGB', 3000, 0, 0, 1) + bytes(3001))",
        "palette mode": RAW + "frame(b'P', H.pack(b'P', 1, 1, b'CMYK', 4, 0, 0, 1) + bytes(5))",
        "transparency kind": RAW + "frame(b'P', H.pack(b'L', 1, 1, b'', 0, 200, 5, 1) + bytes(6))",
        "transparency tuple": RAW + "frame(b'P', H.pack(b'RGB', 1, 1, b'', 0, 3, 16, 3) + b'\\xff' * 19)",
        "message too long": RAW + "frame(b'F', b'e' + b'x' * 10**6)",
        "message of no kind": RAW + "frame(b'F', b'?hello')",
        "empty message": RAW + "frame(b'F', b'')",
        "message with escapes": RAW + "frame(b'F', b'e\\x1b[2J\\xff\\x00')",
        "message that grows when decoded": RAW + "frame(b'F', b'e' + b'\\xff' * 8000)",
        "output that grows when decoded": RAW + "frame(b'O', b'\\xff' * 65000)\n" + SHOW,
        "output too long": RAW + "frame(b'O', b'x' * 10**6)\n" + SHOW,
        "output of no length": RAW + "while True: frame(b'O', b'')",
        "output for ever": RAW + "while True: frame(b'O', b'x' * 1000)",
        "half a header, then nothing": RAW + "os.write(3, b'P\\x00')\nwhile True: pass",
        "drip": RAW + "import time\nframe(b'P', H.pack(b'L', 9000, 900, b'', 0, 0, 0, 8100000), H.size + 8100000)\nwhile True:\n    os.write(3, b'x'); time.sleep(.05)",
        "two replies": RAW + "frame(b'P', H.pack(b'L', 1, 1, b'', 0, 0, 0, 1) + b'x')\nframe(b'F', b'eno')",
        "close the channel": "import os\nos.close(3)\n" + SHOW,
        "close everything": "import os\nos.closerange(0, 99)\n" + SHOW,
        "read the channel away": "import os, threading\nwhile True: os.read(3, 9999)",
    }, NO_CHANNEL),
    *family("reply", "forged", {
        "_exit": "import os\nos._exit(0)",
        "exit": "import sys\nsys.exit(0)",
        "abort": "import os\nos.abort()",
        "segfault": "import ctypes\nctypes.string_at(0)",
        "stack overflow": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return [*map(lambda _: f(), [0])]\nf()",
        "deep recursion": "import sys\nsys.setrecursionlimit(10**5)\ndef f(n): return f(n + 1)\nf(0)",
        "keyboard interrupt": "raise KeyboardInterrupt",
        "hostile error text": "class E(Exception):\n    def __str__(self): raise SystemExit\n    __repr__ = __str__\nraise E",
        "type without a module": "raise type('T', (Exception,), {})()",
        "hostile metaclass": "class M(type):\n    def __instancecheck__(c, o): return True\n    @property\n    def __name__(c): raise ValueError\nclass X(metaclass=M): pass\nresult_image = X()",
        "hostile subclass mode": "class I(Image.Image):\n    mode = 'EVIL'\n    size = (-1, 2**40)\nresult_image = I()",
        "hostile tobytes": "class I(Image.Image):\n    def tobytes(self, *a): return b'x'\n    def load(self): pass\nresult_image = I()",
        "pretended class": "class I:\n    @property\n    def __class__(self): return Image.Image\nresult_image = I()",
        "pickle bomb": "class P(Image.Image):\n    def __reduce__(self): return (exec, ('raise SystemExit',))\nresult_image = P()",
        "closed picture": "image.close()\nresult_image = image",
        "closed stdout": "import sys\nsys.stdout.close()\n" + SHOW,
        "stdout replaced": "import sys\nclass S:\n    def write(self, x): raise SystemExit\nsys.stdout = S()\nprint('x')",
        "broken PIL": "Image.Image.tobytes = Image.Image.load = None\nImage._getencoder = lambda *a: None\n" + SHOW,
        "broken struct": "import struct\nstruct.pack = struct.Struct = None\n" + SHOW,
        "broken os.write": "import os\nos.write = lambda *a: 1\n" + SHOW,
        "builtins removed": "import builtins\nfor n in list(vars(builtins)):\n    if n not in ('__import__',): delattr(builtins, n)",
        "scope emptied": "globals().clear()",
        "result is a module": "result_image = Image",
        "result too large": "result_image = Image.new('L', (9000, 9000))",
        "result empty": "result_image = Image.new('L', (0, 9))",
        "result of no mode": "image._mode = 'XYZ'\nresult_image = image",
        "size lies": "image._size = (9999, 9999)\nresult_image = image",
        "frames rewritten": "import sys\nsys._getframe(1).f_locals.clear()\nsys._getframe(1).f_globals.clear()",
    }, "what an unprotected executor does with it depends on that executor alone"),
]  # fmt: skip

STATE = [
    Attack("state", name, code + "\n" + SHOW, "state", probe + "\n" + SHOW,
           unprotected="the process that would show it does not survive it" if name == "C memory" else "")
    for name, code, probe in (
        ("builtins", "import builtins\nbuiltins.leak = 1", "import builtins\nprint('DIRTY' if hasattr(builtins, 'leak') else '')"),
        ("monkeypatched PIL", "Image.Image.rotate = lambda s, a: s", "print('DIRTY' if Image.Image.rotate.__name__ != 'rotate' else '')"),
        ("monkeypatched numpy", "np.array = None", "print('DIRTY' if np.array is None else '')"),
        ("module attribute", "import math\nmath.leak = 1", "import math\nprint('DIRTY' if hasattr(math, 'leak') else '')"),
        ("sys.modules", "import sys\nsys.modules['leak'] = sys", "import sys\nprint('DIRTY' if 'leak' in sys.modules else '')"),
        ("globals", "leak = 1", "print('DIRTY' if 'leak' in globals() else '')"),
        ("random state", "import random\nrandom.seed(1)\nnp.random.seed(1)", "import random\nr = random.Random(1).random()\nprint('DIRTY' if random.random() == r else '')"),
        ("environment", "import os\nos.environ['LEAK'] = '1'", "import os\nprint('DIRTY' if 'LEAK' in os.environ else '')"),
        ("locale and decimal", "import decimal\ndecimal.getcontext().prec = 3", "import decimal\nprint('DIRTY' if decimal.getcontext().prec == 3 else '')"),
        ("warnings filters", "import warnings\nwarnings.simplefilter('error')", "import warnings\nprint('DIRTY' if warnings.filters[0][0] == 'error' else '')"),
        ("numpy error state", "np.seterr(all='raise')", "print('DIRTY' if np.geterr()['divide'] == 'raise' else '')"),
        ("recursion limit", "import sys\nsys.setrecursionlimit(77777)", "import sys\nprint('DIRTY' if sys.getrecursionlimit() == 77777 else '')"),
        ("import hook", "import sys\nsys.meta_path.append(5)", "import sys\nprint('DIRTY' if 5 in sys.meta_path else '')"),
        ("trace and profile", "import sys\nsys.setprofile(lambda *a: None)", "import sys\nprint('DIRTY' if sys.getprofile() else '')"),
        ("C memory", "import ctypes\nctypes.memmove(id(249) + 24, (188).to_bytes(4, 'little'), 4)", "print('DIRTY' if 240 + int('9') == 188 else '')"),
        ("PIL limits", "Image.MAX_IMAGE_PIXELS = 7", "print('DIRTY' if Image.MAX_IMAGE_PIXELS == 7 else '')"),
        ("type attribute by C", "import ctypes, gc\ngc.get_referents(str.__dict__)[0]['leak'] = 1\nctypes.pythonapi.PyType_Modified(ctypes.py_object(str))", "print('DIRTY' if hasattr('', 'leak') else '')"),
    )
]  # fmt: skip

IMPORTS = family("imports", "escaped", {
    "from the folder": "import sys\nsys.path.insert(0, '{folder}')\nimport bait\nprint(bait.X)",
    "spec from file": "import importlib.util as u\ns = u.spec_from_file_location('bait', '{folder}/bait.py')\nm = u.module_from_spec(s)\ns.loader.exec_module(m)\nprint(m.X)",
    "runpy": "import runpy\nprint(runpy.run_path('{folder}/bait.py')['X'])",
    "exec of a file": "exec(open('{folder}/bait.py').read())\nprint(X)",
    "dlopen": "import ctypes, glob\nctypes.CDLL('libm.so.6').cos\nctypes.CDLL('libutil.so.1')\nctypes.CDLL('libresolv.so.2')\nprint('ESCAPED')",
    "C dlopen": "import ctypes\nl = ctypes.CDLL(None)\nl.dlopen.restype = ctypes.c_void_p\nprint('ESCAPED' if l.dlopen(b'libresolv.so.2', 2) else '')",
    "extension module": "import sys, _imp, importlib.machinery as m\nl = m.PathFinder.find_spec('_testcapi', ['{stdlib}/lib-dynload'])\nprint('ESCAPED' if l else '')",
    "zipimport": "import zipimport, zipfile\nzipfile.ZipFile('{folder}/q.zip', 'w').writestr('m.py', 'X=1')\nzipimport.zipimporter('{folder}/q.zip').load_module('m')\nprint('ESCAPED')",
    "the caller's package": "import sys\nsys.path.append('{project}')\nimport distil.sandbox\nprint('ESCAPED')",
    "a module off the list": "import sys\nsys.path += ['{stdlib}']\nimport mailbox\nprint('ESCAPED')",
    "pip": "import subprocess, sys\nsubprocess.run([sys.executable or '{python}', '-c', 'pass'], check=True)\nprint('ESCAPED')",
    "pkgutil data": "import pkgutil\nprint('ESCAPED' if pkgutil.get_data('json', '__init__.py') else '')",
    "inspect source": "import inspect, json\nprint('ESCAPED' if inspect.getsource(json) else '')",
    "the server's parts": "import sys\nprint('ESCAPED' if [n for n in ('server', 'jail', 'job', 'wire', 'preload') if n in sys.modules] else '')\nimport jail",
})  # fmt: skip
SERVER_PARTS = "the server's modules exist only in the server"
IMPORTS = [
    Attack(a.category, a.name, a.code, a.detector, unprotected=SERVER_PARTS)
    if a.name == "the server's parts"
    else a
    for a in IMPORTS
]

ATTACKS: list[Attack] = [
    *FILES_READ, *METADATA, *FILES_WRITE, *ENVIRONMENT, *NETWORK, *PROCESSES, *KERNEL, *TIME, *MEMORY, *OUTPUT,
    *REPLY, *STATE, *IMPORTS,
]  # fmt: skip
