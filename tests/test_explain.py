"""An op in one view, and the hot loop in a listing."""

import numpy as np
import pytest

import numbagrad as ng
from numbagrad.looking import explain, listings


def test_every_part_of_an_op_is_there():
    explanation = ng.inspect.explain("exp", ng.asarray(np.ones(1000, np.float32)))
    assert explanation.call == "exp(float32[1000])"
    assert [part.title for part in explanation.parts] == [
        "formula", "CPU kernel: exp_forward", "CUDA kernel: exp_forward", "gradient",
        "LLVM of the hot loop", "assembly of the hot loop", "PTX", "work",
    ]  # fmt: skip
    assert "def exp_forward(x" in explanation["CPU kernel"]
    assert "def _exp_forward(x, out):" in explanation["CUDA kernel"]
    assert "x float>" in explanation["LLVM"]
    assert len(explanation["assembly"].splitlines()) > 5
    # The toolkit may be missing.
    assert "exp_forward" in explanation["PTX"] or explanation["PTX"].startswith("not compiled: ")
    text, page = str(explanation), explanation._repr_html_()
    for part in explanation.parts:
        assert part.title in text
        assert f"<b>{part.title}</b>" in page
    assert page.count("<details") == page.count("</details>") == len(explanation.parts)


def test_work_is_that_of_the_formula():
    x, weight = (ng.asarray(np.ones(shape, np.float32)) for shape in ((10, 20), (20, 30)))
    rows = [line.split() for line in ng.inspect.explain("matmul", x, weight)["work"].splitlines()]
    assert rows[1] == ["forward", "matmul", "0.01", "4.3", "2.73"]
    assert [row[:2] for row in rows[1:]] == [
        ["forward", "matmul"], ["backward", "matmul"], ["backward", "matmul"],
    ]  # fmt: skip


def test_what_has_no_gradient_is_shown_without():
    explanation = ng.inspect.explain("equal")
    assert explanation["gradient"].startswith("none")
    assert "backward" not in explanation["work"]


def test_ops_can_be_explained_without_inputs(monkeypatch):
    for slow in ("_machine_code", "_ptx"):
        monkeypatch.setattr(explain, slow, lambda op, call: [])
    for name in explain.EXAMPLES:
        explanation = ng.inspect.explain(name)
        assert explanation["formula"].strip(), name
        assert "forward" in explanation["work"]


def test_it_says_what_would_fit():
    with pytest.raises(ValueError, match="did you mean 'conv2d'"):
        ng.inspect.explain("conv3d")
    with pytest.raises(TypeError, match=r"explain\('pad', x\)"):
        ng.inspect.explain("pad")
    with pytest.raises(ValueError, match="no kernel"):
        ng.inspect.explain("reshape", ng.asarray(np.ones((2, 3), np.float32)), (3, 2))
    with pytest.raises(KeyError, match="work"):
        ng.inspect.explain("relu")["wrk"]


ARM = """\
LBB0_1:
\tldr q0, [x8], #16
\tfmla v1.4s, v0.4s, v2.4s
\tsubs x9, x9, #1
\tb.ne LBB0_1
\tret
"""
PTX = """\
$L__BB0_2:
\tmov.u64 %rd1, 0;
$L__BB0_3:
\tadd.s64 %rd1, %rd1, 1;
\t@%p2 bra \t$L__BB0_3;
\tfma.rn.f32 \t%f1, %f2, %f3, %f1;
\t@%p1 bra \t$L__BB0_2;
\tret;
"""


def test_the_hot_loop_of_other_processors():
    assert listings.of_assembly(ARM) == ARM.splitlines()[:-1]
    assert listings.instructions(listings.of_assembly(ARM)) == (4, 1)
    assert listings.of_assembly(PTX) == PTX.splitlines()[:-1]  # the inner one computes nothing
    assert listings.of_assembly("\tret\n") == []


def test_the_hot_block_of_llvm():
    text = "\n".join([
        "define void @f() {", "entry:", "  br label %loop", "", "loop:",
        "  %a = fmul <8 x float> %x, %y", "  br i1 %c, label %loop, label %exit", "",
        "exit:", "  %b = fmul <8 x float> %x, %y", "  ret void", "}",
    ])  # fmt: skip
    assert listings.of_llvm(text)[0] == "loop:"
    assert listings.of_llvm("entry:\n  ret void\n}") == []
