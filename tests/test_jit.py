"""The content-keyed cache: never stale, never damaged, shared by processes."""

import enum
import importlib
import os
import pickle
import subprocess
import sys
import textwrap
import time
import warnings

import numba
import numpy as np
import pytest

from numbagrad import jit

X = np.array([1.0, 2.0], np.float32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NUMBAGRAD_CACHE_DIR", str(folder))
    jit.cache_dir.cache_clear()
    yield folder
    jit.cache_dir.cache_clear()


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write modules and import them afresh, as a new process would see them."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name, source):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    def load():
        forget()
        importlib.invalidate_caches()
        return importlib.import_module("caller")

    def forget():
        for name in ("callee", "caller", "package", "package.callee"):
            sys.modules.pop(name, None)

    write.load = load
    yield write
    forget()


CALLER = """
    import callee
    from callee import inner
    from numbagrad.jit import njit

    @njit
    def kernel(x):
        return {call}
"""


def callee(body, constant=1):
    return f"""
    from numbagrad.jit import njit

    CONSTANT = {constant}

    @njit
    def inner(v):
        return {body}
"""


# -------------------------------------------------------------- never stale


@pytest.mark.parametrize("call", ["inner(x[0])", "callee.inner(x[0])"])
def test_callee_in_another_file(cache, module, call):
    module("caller", CALLER.format(call=call))
    for body, constant, result in [
        ("v + 1", 1, 2),
        ("v + 10", 1, 11),
        ("v + CONSTANT", 1, 2),
        ("v + CONSTANT", 5, 6),
        ("v + 10", 1, 11),
    ]:
        module("callee", callee(body, constant))
        assert module.load().kernel(X) == result


@pytest.mark.parametrize(
    "code",
    [
        "import package.callee\n@njit\ndef kernel(x): return package.callee.inner(x[0])",
        "import package.callee as p\n@njit\ndef kernel(x): return p.constants.STEP + x[0]",
        "import package.callee\ndef make(p):\n    return njit(lambda x: p.callee.inner(x[0]))\n"
        "kernel = make(package)",
    ],
    ids=["function", "constant", "closure"],
)
def test_callee_in_a_package(cache, module, tmp_path, code):
    (tmp_path / "package").mkdir()
    module("package/__init__", "")
    module("caller", f"from numbagrad.jit import njit\n{code}")
    for step in (1, 10):
        constants = f"""
    import types
    constants = types.ModuleType("constants")
    constants.STEP = {step}
"""
        module("package/callee", callee(f"v + {step}") + constants)
        assert module.load().kernel(X) == 1 + step


@pytest.mark.parametrize(
    "made",
    [
        "@numba.vectorize\ndef inner(v): return v + {step}",
        "@numba.vectorize(['float32(float32)'])\ndef inner(v): return v + {step}",
        "@njit\ndef inner(v, step={step}): return v + step",
    ],
    ids=["DUFunc", "DUFunc with a signature", "default"],
)
def test_callee_of_another_kind(cache, module, made):
    module("caller", CALLER.format(call="inner(x[0])"))
    for step in (1, 10):
        module("callee", "import numba\nfrom numbagrad.jit import njit\n" + made.format(step=step))
        assert module.load().kernel(X) == 1 + step


def test_keyword_defaults_count():
    one, other = (eval(f"lambda v, *, step={step}: v + step") for step in (1, 2))
    assert jit.content_key(one) != jit.content_key(other)


def test_options_of_a_callee_count():
    inner = [numba.njit(fastmath=fast)(lambda v: v + 1) for fast in (False, True)]
    assert jit.content_key(make(inner[0])) != jit.content_key(make(inner[1]))


def test_what_cannot_be_looked_into_is_not_cached(cache):
    class Step(enum.IntEnum):
        ONE = 1

    assert jit.content_key(make(Step)) is None
    kernel = jit.njit(lambda x: x[Step.ONE])
    assert kernel(X) == 2
    assert not list(cache.glob("*.nbc"))


def test_no_kernel_is_opaque():
    from numbagrad import kernels_cpu

    kernels = [k for k in vars(kernels_cpu).values() if isinstance(k, jit.Kernel)]
    assert None not in map(jit.content_key, kernels)


def test_unchanged_code_is_loaded(cache, module):
    module("caller", CALLER.format(call="inner(x[0])"))
    module("callee", callee("v + 1"))
    assert module.load().kernel(X) == 2
    kernel = module.load().kernel
    assert kernel(X) == 2
    assert sum(kernel.stats.cache_hits.values()) == 1
    assert sum(kernel.stats.cache_misses.values()) == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x + 1", "x + 2"),
        ("x.sum() + 1", "x.max() + 1"),  # another name
        ("'a' == 'a'", "'a' == 'b'"),
        ("[a + 1 for a in range(3)][2]", "[a + 2 for a in range(3)][2]"),  # nested code
    ],
)
def test_key_follows_the_code(before, after):
    keys = {jit.content_key(eval(f"lambda x: {body}")) for body in (before, before, after)}
    assert len(keys) == 2


def make(constant):
    return lambda x: x + constant


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1, 1.0),
        ((1, 2), (1, 3)),
        (np.zeros(3), np.ones(3)),
        (np.zeros(3), np.zeros(3, np.float32)),
        (np.zeros(4), np.zeros((2, 2))),
        (np.zeros(3), np.zeros(3, np.int64)),
        ((np.zeros(9999), 1), (np.append(np.zeros(9998), 1), 1)),
        (numba.float32, numba.float64),
        (enum.Enum("E", "a b").a, enum.Enum("E", "a b").b),
        (np.float32(1), np.float64(1)),
        (lambda v: v + 1, lambda v: v + 2),
        (np.exp, np.log),
    ],
)
def test_key_follows_what_a_closure_holds(one, other):
    assert jit.content_key(make(one)) == jit.content_key(make(one))
    assert jit.content_key(make(one)) != jit.content_key(make(other))


def test_key_of_functions_that_call_each_other():
    scope = {}
    exec(
        "def even(n): return n == 0 or odd(n - 1)\ndef odd(n): return n != 0 and even(n - 1)", scope
    )
    assert jit.content_key(scope["even"]) != jit.content_key(scope["odd"])


def test_key_follows_the_simd_module(monkeypatch):
    from numbagrad import kernels_cpu, simd

    before = jit.content_key(kernels_cpu.exp_forward)
    source = jit.inspect.getsource
    monkeypatch.setattr(
        jit.inspect, "getsource", lambda m: source(m) + ("# edited" if m is simd else "")
    )
    assert jit.content_key(kernels_cpu.exp_forward) != before


def test_notebook_cells_run_again(cache):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell.instance()

    def run(cell):
        result = shell.run_cell(textwrap.dedent(cell))
        result.raise_error()
        return result.result

    kernel = """
        @njit
        def kernel(x):
            return inner(x[0]) * FACTOR
        """
    run("import numpy as np\nfrom numbagrad.jit import njit\nFACTOR = 1")
    run("@njit\ndef inner(v): return v + 1")
    run(kernel)
    assert run("kernel(np.ones(1))") == 2
    run("@njit\ndef inner(v): return v + 2")
    run(kernel)
    assert run("kernel(np.ones(1))") == 3
    run("FACTOR = 10")
    run(kernel)
    assert run("kernel(np.ones(1))") == 30
    shell.clear_instance()


def test_recompile_forgets_the_key(cache):
    scope = {"njit": jit.njit}
    exec("C = 1\n@njit\ndef kernel(x): return x[0] + C", scope)
    assert scope["kernel"](X) == 2
    scope["C"] = 5
    scope["kernel"].recompile()
    assert scope["kernel"](X) == 6


def test_what_a_kernel_takes_in_can_also_be_called(cache):
    """It is kept twice: as LLVM code for its callers, which is never run, and as machine code."""
    from numbagrad import kernels_cpu

    for _ in range(2):  # compiled, then loaded
        helper = jit.njit(kernels_cpu._even.py_func)
        expected = helper.py_func(10, 4, 2)
        assert jit.njit(make_caller(helper))(10) == expected
        assert helper(10, 4, 2) == expected
        assert len(list(cache.glob("_even-*.nbc"))) == 2


def make_caller(helper):
    return lambda total: helper(total, 4, 2)


# --------------------------------------------------------------- on the disk


@jit.njit
def total(x):
    acc = x.dtype.type(0)
    for i in range(x.size):
        acc += x[i]
    return acc


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 9])
def test_damaged_file(cache, damage):
    assert jit.njit(total.py_func)(X) == 3
    (path,) = cache.glob("*.nbc")
    good = path.read_bytes()
    path.write_bytes(damage(good))
    assert jit.njit(total.py_func)(X) == 3
    assert len(path.read_bytes()) > len(damage(good))  # written again, and whole


def test_second_dispatcher_loads(cache, monkeypatch):
    assert jit.njit(total.py_func)(X) == 3
    saved = []
    monkeypatch.setattr(jit.ContentCache, "save_overload", lambda *args: saved.append(args))
    assert jit.njit(total.py_func)(X) == 3
    assert not saved
    assert jit.njit(total.py_func)(X.astype(np.float64)) == 3
    assert len(saved) == 1  # another signature


def test_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("NUMBAGRAD_CACHE_DIR", str(tmp_path / "file" / "below"))
    jit.cache_dir.cache_clear()
    with pytest.warns(UserWarning, match="cannot write its kernel cache"):
        assert jit.njit(total.py_func)(X) == 3
    assert jit.njit(total.py_func)(X) == 3  # a second warning would be an error
    jit.cache_dir.cache_clear()


def test_full_disk_costs_no_more_than_a_compile(cache, monkeypatch):
    def full(path, content):
        raise OSError("no space left on device")

    monkeypatch.setattr(jit, "write_atomically", full)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert jit.njit(total.py_func)(X) == 3
    assert not list(cache.glob("*.nbc"))


def test_write_atomically_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "file"
    jit.write_atomically(path, b"old")

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        jit.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# ----------------------------------------------------------------- processes

WORK = """
import numpy as np, numbagrad as ng
from numbagrad import jit
count = 0
save = jit.ContentCache.save_overload
def counting(*args):
    global count
    count += 1
    save(*args)
jit.ContentCache.save_overload = counting
assert ng.add(ng.asarray([1.0, 2.0]), 1).tolist() == [2, 3]
print(count)
"""


def start(cache, program, *arguments):
    environment = os.environ | {"NUMBAGRAD_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE)


def test_processes(cache):
    together = [start(cache, WORK), start(cache, WORK)]  # compile the same at once
    counts = [int(process.communicate()[0]) for process in together]
    assert [process.returncode for process in together] == [0, 0]
    assert max(counts) > 0
    assert not [path for path in cache.iterdir() if path.suffix != ".nbc"]
    later = start(cache, WORK)
    assert later.communicate()[0] == "0\n"  # compiles nothing


CLOSURES = """
import sys
from numbagrad.jit import njit

def scaled(by):
    @njit
    def inner(x):
        return x * by
    return inner

two, three = scaled(2), scaled(3)

@njit
def both(x):
    return two(x) + 10 * three(x)

print({"two": two, "three": three, "both": both}[sys.argv[1]](1))
"""


def test_closures_of_one_name_from_several_processes(cache):
    for name, value in {"two": 2, "three": 3, "both": 32}.items():  # the last one loads the others
        process = start(cache, CLOSURES, name)
        assert process.communicate()[0] == f"{value}\n"


# ------------------------------------------------------------------ messages


WARM = """
import sys
import numpy as np
import numbagrad as ng
from numbagrad.jit import njit

x = ng.asarray(np.ones(300_000, np.float32))
assert (x + x).sum().item() == 600_000  # on several threads
print("loaded all of Numba" if "numba.np.npyimpl" in sys.modules else "quick", end=", ")

@njit
def users_own(x):
    return np.sort(x)[0] + hash(x.size) + np.random.randint(1, 2)

print(users_own(np.array([3.0, 2.0])), sum(users_own.stats.cache_hits.values()), end=", ")
assert (x * 2.0).sum().item() == 600_000
"""


def test_own_kernels_are_loaded_without_the_rest_of_numba(cache):
    """A third of a second of each program's start; a user's kernel may need what it brings."""
    reports = []
    for _ in range(2):
        process = start(cache, WARM)
        reports.append(process.communicate()[0])
        assert process.returncode == 0
    assert reports == ["loaded all of Numba, 5.0 0, ", "quick, 5.0 1, "]


def test_announces_slow_compiles(cache, monkeypatch, capfd):
    monkeypatch.setattr(jit, "ANNOUNCE_AFTER", 0.001)
    jit.njit(total.py_func)(X)
    assert capfd.readouterr().err == "compiling total ...\n"
    monkeypatch.setattr(jit, "ANNOUNCE_AFTER", 1000)
    jit.njit(total.py_func)(X.astype(np.int64))
    assert capfd.readouterr().err == ""


def test_announces_no_loads(cache, monkeypatch, capfd):
    jit.njit(total.py_func)(X)
    monkeypatch.setattr(jit, "ANNOUNCE_AFTER", 0.0)
    capfd.readouterr()
    key = jit.content_key
    monkeypatch.setattr(jit, "content_key", lambda f: time.sleep(0.05) or key(f))
    kernel = jit.njit(total.py_func)
    assert kernel(X) == 3
    assert sum(kernel.stats.cache_hits.values()) == 1
    assert capfd.readouterr().err == ""


def test_divides_as_numpy():
    assert jit.njit(lambda a, b: a / b)(1.0, 0.0) == np.inf


# ----------------------------------------------------- calls by an address


@jit.njit
def fails_on_negative(x, out):
    if x[0] < 0:
        raise ValueError("negative")
    out[0] = x[0]


@jit.njit
def copies(x, extents, scale, plus, out, mine):
    """Take one argument of each kind that kernels have."""
    for i in range(extents[1]):
        out[0, i] = x[extents[0], i] * scale + (1 if plus else 0)
        mine[0] += x.dtype.type(1)


@jit.njit
def starts(entry, words, row, thread):
    return jit.start(entry, words, row, thread)


def test_start_by_address():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    out, mine = np.zeros((1, 3), np.float32), np.zeros((2, 1), np.float32)
    arguments = [x, (1, 3), 0.5, True, out, mine[0]]
    entry = jit.entry_address(copies, arguments)
    words = [[word for argument in arguments for word in jit.words_of(argument)]] * 2
    words = np.array(words, np.int64)
    words[:, -2] = mine.strides[0]
    words[1, 7] = 0  # the second run adds nothing
    assert starts(entry, words, 0, 0) == 0
    np.testing.assert_array_equal(out, [[2.5, 3, 3.5]])
    assert starts(entry, words, 1, 1) == 0
    np.testing.assert_array_equal(out, [[1.5, 2, 2.5]])
    np.testing.assert_array_equal(mine, [[3], [3]])


def test_start_reports_a_failure():
    out = np.zeros(1, np.float32)
    entry = jit.entry_address(fails_on_negative, (X, out))
    words = np.array([[*jit.words_of(x), *jit.words_of(out)] for x in (X, -X)], np.int64)
    assert starts(entry, words, 0, 0) == 0
    assert out[0] == 1
    assert starts(entry, words, 1, 0) != 0


def test_kernel_that_returns_a_value():
    with pytest.raises(TypeError, match=r"kernel total must write .* nothing; it returns float32"):
        jit.entry_address(total, (X,))


def test_pickled_kernel(cache):
    assert pickle.loads(numba.core.serialize.dumps(jit.njit(total.py_func)))(X) == 3
