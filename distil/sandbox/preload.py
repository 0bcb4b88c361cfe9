"""Everything that model-written code may import, loaded before the doors close.

In the jail no file can be opened, so a module that is not here cannot be imported there.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import pkgutil

# Harmless to have: what some of these could reach, the kernel refuses. Left out are large ones that cannot
# work in the jail (asyncio, ssl, http.client, multiprocessing, sqlite3 …).
STANDARD = """
abc argparse array ast base64 bdb binascii bisect builtins bz2 calendar cmath cmd code codecs codeop
collections collections.abc colorsys concurrent.futures concurrent.futures.thread contextlib contextvars
copy copyreg csv ctypes ctypes.util dataclasses datetime decimal difflib dis enum errno filecmp fileinput
fnmatch fractions functools gc getopt getpass gettext glob graphlib gzip hashlib heapq hmac html html.parser
imghdr importlib importlib.resources importlib.util inspect io ipaddress itertools json keyword linecache
locale logging lzma marshal math mimetypes mmap numbers opcode operator os os.path pathlib pickle
pickletools pkgutil platform pprint queue quopri random re reprlib sched secrets select selectors shelve
shlex shutil signal socket stat statistics string stringprep struct subprocess symtable sys sysconfig
tempfile textwrap threading time timeit token tokenize trace traceback types typing unicodedata urllib
urllib.error urllib.parse uuid warnings wave weakref xml xml.etree.ElementTree xml.dom.minidom zipfile zlib
zoneinfo _strptime _pydecimal __future__
"""
ENCODINGS = """
ascii latin_1 cp437 cp1252 utf_16 utf_16_le utf_16_be utf_32 utf_7 utf_8_sig idna punycode
raw_unicode_escape unicode_escape hex_codec base64_codec rot_13 zlib_codec charmap
"""
# Not numpy.matlib: its `from numpy import *` loads numpy.testing and f2py, a fifth of all memory here.
NUMPY = """
numpy numpy.char numpy.ctypeslib numpy.dtypes numpy.exceptions numpy.fft numpy.lib.format numpy.lib.introspect
numpy.lib.mixins numpy.lib.npyio numpy.lib.recfunctions numpy.lib.scimath numpy.lib.stride_tricks
numpy.lib.user_array numpy.linalg numpy.ma numpy.ma.mrecords numpy.ma.extras numpy.polynomial
numpy.random numpy.rec numpy.strings numpy.typing numpy._core._methods numpy._core._internal
numpy._core._dtype_ctypes numpy._core._dtype numpy._core.numeric numpy._core.strings
"""
# Windows and menus; programs that print when imported.
PIL_LEFT_OUT = frozenset(
    {"PIL.ImageQt", "PIL.ImageTk", "PIL._imagingtk", "PIL._tkinter_finder", "PIL.__main__", "PIL.report"}
)


def load(name: str) -> None:
    """Import one module if it is there; what fails to import here is simply not offered."""
    with contextlib.suppress(Exception):
        importlib.import_module(name)


def load_all() -> None:
    """Import everything on offer and use the codecs, fonts and BLAS once, so that they open no file later."""
    encodings = (f"encodings.{name}" for name in ENCODINGS.split())
    for name in (*STANDARD.split(), *encodings, *NUMPY.split()):
        load(name)
    import PIL  # noqa: PLC0415 - after the environment is set

    for module in pkgutil.iter_modules(PIL.__path__, "PIL."):
        if module.name not in PIL_LEFT_OUT:
            load(module.name)
    warm_up()
    gc.collect()
    gc.freeze()  # collections in a child then leave these objects' pages shared


def warm_up() -> None:
    """Run what loads or allocates on first use."""
    import time  # noqa: PLC0415

    import numpy as np  # noqa: PLC0415
    from PIL import Image, ImageDraw, ImageFont  # noqa: PLC0415

    np.linalg.svd(np.eye(3))
    np.dot(np.ones((8, 8)), np.ones((8, 8)))
    np.random.default_rng(1).normal(size=2)
    np.fft.fft(np.ones(4))
    time.strptime("2000-01-01", "%Y-%m-%d")
    picture = Image.new("RGB", (16, 16))
    Image.init()
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF"):
        with contextlib.suppress(Exception):
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            buffer.seek(0)
            Image.open(buffer).load()
    with contextlib.suppress(Exception):
        ImageDraw.Draw(picture).text((0, 0), "a", font=ImageFont.load_default(10))
    picture.resize((8, 8), Image.Resampling.BICUBIC).rotate(45).convert("L").tobytes()
