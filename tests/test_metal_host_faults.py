"""Every class of fault that the host runner finds, with its location."""

import mlx.core as mx
import pytest

from tests.metal_host import (
    AddressSpaceError,
    BarrierError,
    DataRaceError,
    KernelCompileError,
    KernelCrash,
    KernelTextError,
    LintError,
    MetalHostError,
    OutOfBoundsError,
    ReadOnlyWriteError,
    ScheduleError,
    SimdgroupError,
    ThreadgroupMemoryError,
    UninitialisedReadError,
    UnwrittenOutputError,
    WriteConflictError,
    metal_kernel,
    unsupported_reason,
)

pytestmark = pytest.mark.skipif(unsupported_reason() is not None, reason=str(unsupported_reason()))
COUNT, GROUP = 128, 64
START = "uint i = thread_position_in_grid.x; uint t = thread_index_in_threadgroup;\n"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def run_checked(source, header="", dtype=mx.float32, rules_off=(), init_value=None, atomic_outputs=False, **options):
    kernel = metal_kernel("faulty", ["x"], ["y"], START + source, header, atomic_outputs=atomic_outputs)
    inputs = [(mx.arange(COUNT) % 7 + 1).astype(dtype)]
    return kernel.run_checked(
        inputs=inputs,
        grid=(COUNT, 1, 1),
        threadgroup=(GROUP, 1, 1),
        output_shapes=[(COUNT,)],
        output_dtypes=[dtype],
        rules_off=rules_off,
        init_value=init_value,
        **options,
    )


def case(name, source, *says, header="", **options):
    return pytest.param(source, header, says, options, id=name)


LINT_CASES = [
    case("double", "double d = x[i]; y[i] = d;", "double"),
    case("std", "y[i] = std::max(x[i], 1.0f);", "std"),
    case("long-long", "long long n = i; y[i] = n;", "long-long"),
    case("new", "thread float* p = new float[2]; y[i] = p[0];", "new"),
    case("exception", "try { y[i] = 1; } catch (int) { }", "exceptions"),
    case("throw", "y[i] = f(x[i]);", "exceptions", header="float f(float a) { if (a > 3) throw 1; return a; }\n"),
    case("virtual", "y[i] = 1;", "virtual", header="struct S { virtual float f() { return 1; } };\n"),
    case("goto", "if (x[i] > 3) goto end; y[i] = 1; end: y[i] = 2;", "goto"),
    case("static-local", "static int n = 0; n++; y[i] = n;", "static-local"),
    case("assembler", 'asm("nop"); y[i] = 1;', "assembler"),
    case("function-pointer", "float (*p)(float) = g; y[i] = p(x[i]);", "function-pointer", header="float g(float a) { return a; }\n"),
    case("lambda", "auto f = [&](float a) { return a + x[i]; }; y[i] = f(1);", "lambda"),
    case("lambda-in-header", "y[i] = f(x[i]);", "lambda", header="float f(float a) { auto g = [=] { return a; }; return g(); }\n"),
    case("recursion", "y[i] = f(3);", "recursion", header="int f(int n) { return n < 1 ? 1 : n * f(n - 1); }\n"),
    case("erf", "y[i] = erf(x[i]);", "not-metal-math"),
    case("printf", 'printf("%d", i); y[i] = 1;', "variadic"),
    case("wide-atomic", "device atomic<long>* p = (device atomic<long>*)y; y[i] = 0;", "wide-atomic"),
    case("memory-order", "y[i] = memory_order_seq_cst;", "memory-order"),
    case("concept", "y[i] = f(x[i]);", "newer-c++", header="template <class T> requires true T f(T a) { return a; }\n"),
    case("threadgroup-in-macro", "SHARED(s, 4); y[i] = 1;", "threadgroup-in-macro", header="#define SHARED(s, n) threadgroup float s[n]\n"),
    case("threadgroup-initialiser", "threadgroup float s[2] = {1, 2}; y[i] = s[0];", "threadgroup-initialiser"),
    case(
        "threadgroup-in-helper",
        "y[i] = f(t);",
        "threadgroup-scope",
        header="float f(uint t) {\n  threadgroup float s[64]; s[t] = 1; return s[t]; }\n",
    ),
    case("program-scope", "y[i] = table[t % 2];", "program-scope", header="const float table[2] = {1, 2};\n"),
    case("program-scope-variable", "y[i] = 1;", "program-scope", header="float state;\n"),
    case(
        "pointer-to-pointer", "device const float* p[2] = {x, x}; device const float* thread* q = p; y[i] = q[1][0];", "pointer-to-pointer"
    ),
    case("unqualified-pointer", "const float* p = x; y[i] = p[i];", "address-space"),
    case("unqualified-cast", "y[i] = ((const float*)x)[i];", "address-space"),
    case(
        "unqualified-parameter",
        "float l[2] = {x[i], 1}; y[i] = f(l, 0);",
        "address-space",
        header="float f(const float* p, uint i) { return p[i]; }\n",
    ),
    case("unqualified-template", "float l = 0; f(l); y[i] = l;", "address-space", header="template <typename T> void f(T& p) { p = 1; }\n"),
    case("unqualified-struct", "S s; f(s); y[i] = s.a;", "address-space", header="struct S { float a; };\nvoid f(S& s) { s.a = 1; }\n"),
    case("inheritance", "y[i] = 1;", "inheritance", header="struct A { int a; };\nstruct B : A { int b; };\n"),
    case("noexcept", "y[i] = f();", "noexcept", header="float f() noexcept { return 1; }\n"),
    case("register", "register float a = x[i]; y[i] = a;", "noexcept"),
    case("unroll", "\n#pragma unroll N\nfor (int k = 0; k < N; k++) y[i] = k;", "unroll", header="enum { N = 4 };\n"),
    case("null-pointer", "device const float* p = i < 3 ? x : 0; y[i] = p ? p[i] : 1.0f;", "null-pointer"),
    case("nullptr", "device const float* p = nullptr; y[i] = p ? p[i] : 1.0f;", "null-pointer"),
    case("literal", "y[i] = 0.5 * x[i];", "literal"),
    case("literal-with-exponent", "y[i] = 1e-3 * x[i];", "literal"),
    case("array-parameter", "float a[2]; y[i] = f(a);", "array-parameter", header="float f(float a[2]) { return a[0]; }\n"),
    case("reserved-variable", "int sampler = 1; y[i] = sampler;", "reserved"),
    case("reserved-parameter", "y[i] = f(1);", "reserved", header="float f(float fragment) { return fragment; }\n"),
    case("library-function", "y[i] = fract(x[i]);", "library-name", header="float fract(float a) { return a; }\n"),
    case("mlx-function", "y[i] = ceildiv(x[i], 2.0f);", "library-name", header="float ceildiv(float a, float b) { return a / b; }\n"),
    case("mlx-struct", "y[i] = 1;", "library-name", header="struct Limits2 { int a; };\nstruct WorkPerThread { int a; };\n"),
    case("mlx-macro", "y[i] = 1;", "library-name", header="#define MTL_CONST constant\n"),
    case("library-constant", "y[i] = MAXFLOAT;", "library-name", header="enum Ends { LEAST, MAXFLOAT };\n"),
    case("library-macro", "y[i] = M_PI_F;", "library-name", header="enum { M_PI_F = 3 };\n"),
    case("header-without-newline", "y[i] = 1;", "header-end", header="// a comment"),
]


@pytest.mark.parametrize(("source", "header", "says", "options"), LINT_CASES)
def test_lint_names_the_rule_and_the_line(source, header, says, options):
    with pytest.raises(LintError) as caught:
        run_checked(source, header, **options)
    assert says[0] in {finding.rule for finding in caught.value.findings}
    place = next(f"{finding.piece}:{finding.line}" for finding in caught.value.findings if finding.rule == says[0])
    assert f"{place}: {says[0]}: " in str(caught.value)


FINE = """enum class Kind : int { ONE, TWO };
#define NEAR 4
struct Pair { int a, b; };
template <int N> inline float of(thread const float* values, int length) { return values[N] + float(length); }
inline float step_of(float edge) { return edge > 0.5f ? 1.0f : 0.0f; }
"""


def test_lint_leaves_plain_text_alone():
    """Locals may be named as functions of the library are, which they hide; `? :` chooses numbers and arrays."""
    source = """
#pragma unroll(NEAR)
  for (int step = 0; step < NEAR; step++) y[i] = 1e-3f * step;
#pragma unroll 2
  for (int k = 0; k < 2; k++) y[i] += k ? 0.0f : 1.0f;
  float length[2] = {1.0f, 2.0f};
  device const float* p = i < 3 ? x : x + 1;
  y[i] += of<1>(length, 3) + p[0] + step_of(2.5f);"""
    assert not metal_kernel("fine", ["x"], ["y"], START + source, FINE).lint()


ADDRESS_CASES = [
    case("device-to-threadgroup", "threadgroup const float* p = x; y[i] = p[i];", "source:2", "device"),
    case("device-to-helper", "y[i] = f(x);", "source:2", header="float f(threadgroup const float* p) { return p[0]; }\n"),
    case(
        "threadgroup-to-helper",
        "threadgroup float s[64]; y[i] = f(s);",
        "source:2",
        header="float f(device const float* p) { return p[0]; }\n",
    ),
    case("thread-to-helper", "float l[2] = {1, 2}; y[i] = f(l);", "source:2", header="float f(device const float* p) { return p[0]; }\n"),
    case("constant-to-device", "device const float* p = table; y[i] = p[0];", "source:2", header="constant float table[2] = {1, 2};\n"),
    case(
        "inside-a-template",
        "y[i] = f<float>(x, t);",
        "header:2",
        header="template <typename T>\nT f(device const T* p, uint t) { threadgroup const T* q = p; return q[t]; }\n",
    ),
]


@pytest.mark.parametrize(("source", "header", "says", "options"), ADDRESS_CASES)
def test_address_spaces(source, header, says, options):
    with pytest.raises(AddressSpaceError) as caught:
        run_checked(source, header, **options)
    for words in says:
        assert words in str(caught.value)


COMPILE_CASES = [
    case("unknown-name", "y[i] = zz;", "source:2: error: use of undeclared identifier 'zz'"),
    case("write-to-input", "x[i] = 1; y[i] = 0;", "source:2"),
    case("write-to-constant", "table[0] = 1; y[i] = table[0];", "source:2", header="constant float table[2] = {1, 2};\n"),
    case("variable-length-array", "int n = x[i]; float l[n]; l[0] = 1; y[i] = l[0];", "source:2"),
    case("zero-length-array", "Some<0> a; y[i] = sizeof(a);", "header:1", header="template <int N> struct Some { float values[N]; };\n"),
    case("newer-c++", "if constexpr (sizeof(x) == 8) y[i] = 1;", "source:2", "constexpr if"),
    case("ambiguous-max", "y[i] = max(x[i], 0);", "ambiguous"),
    case("vector-to-vector", "int4 a = float4(x[i]); y[i] = a.x;", "source:2"),
    case("vector-items", "float4 a = float4(1.0f, 2.0f); y[i] = a.x;", "as many items"),
    case("float-to-bfloat", "bfloat16_t b = x[i] * 2.0f; y[i] = b;", "no implicit conversion to bfloat"),
    case("simd-of-bool", "y[i] = simd_sum(x[i] > 3);", "no overload for this type"),
    case("simd-of-long", "y[i] = simd_sum(long(x[i]));", "no overload for this type"),
    case(
        "atomic-max-of-float",
        "atomic_fetch_max_explicit(&y[0], x[i], memory_order_relaxed);",
        "atomic_fetch_max",
        init_value=0,
        atomic_outputs=True,
    ),
    case(
        "atomic-of-half",
        "atomic_fetch_add_explicit(&y[0], x[i], memory_order_relaxed);",
        "atomic<T>",
        atomic_outputs=True,
        dtype=mx.float16,
    ),
    case("missing-semicolon-on-line-3", "float a = 1;\nfloat b = 2\ny[i] = a + b;", "source:3", "    3 | float b = 2"),
    case("header-line", "y[i] = f();", "header:2", "return unknown;", header="float f() {\n  return unknown;\n}\n"),
]


@pytest.mark.parametrize(("source", "header", "says", "options"), COMPILE_CASES)
def test_compile_errors_quote_the_kernel(source, header, says, options):
    with pytest.raises(KernelCompileError) as caught:
        run_checked(source, header, **options)
    for words in says:
        assert words in str(caught.value)
    assert "`faulty`" in str(caught.value)


def fault(name, exception, source, *says, header="", **options):
    return pytest.param(exception, source, header, says, options, id=name)


SHARED = "threadgroup float s[64];\n"
CLEARED = f"threadgroup float s[64]; s[t] = 0; {BARRIER}\n"
MIXED_ATOMICS = f"""
threadgroup atomic_int n;
if (t == 0) atomic_store_explicit(&n, 0, memory_order_relaxed);
{BARRIER}
atomic_fetch_add_explicit(&n, 1, memory_order_relaxed);
y[i] = *(threadgroup int*)&n;
"""
ENDLESS = """
float g(float a);
float f(float a) { float l[4096]; l[int(a)] = a; return l[int(a)] + g(a); }
float g(float a) { return f(a) + 1; }
"""
RUN_CASES = [
    fault("threadgroup-memory", ThreadgroupMemoryError, f"threadgroup float s[9000]; s[t] = 1; {BARRIER} y[i] = s[t];", "36000 bytes"),
    fault("write-then-read", DataRaceError, CLEARED + "s[t] = x[i];\ny[i] = s[63 - t];", "source:3", "source:4", "threadgroup s["),
    fault("read-then-write", DataRaceError, CLEARED + "y[i] = s[63 - t];\ns[t] = x[i];", "source:3", "source:4"),
    fault(
        "barrier-without-flag",
        DataRaceError,
        CLEARED + "s[t] = x[i]; threadgroup_barrier(mem_flags::mem_none); y[i] = s[63 - t];",
        "without a barrier of mem_flags::mem_threadgroup",
    ),
    fault(
        "barrier-of-the-other-memory",
        DataRaceError,
        f"y[i] = x[i];\n{BARRIER} float a = y[i ^ 1]; threadgroup_barrier(mem_flags::mem_device); y[i] = a;",
        "mem_device",
        "y[",
    ),
    fault(
        "simdgroup-barrier-is-too-small",
        DataRaceError,
        CLEARED + "s[t] = x[i]; simdgroup_barrier(mem_flags::mem_threadgroup); y[i] = s[63 - t];",
        "without a barrier of mem_flags::mem_threadgroup",
    ),
    fault("atomic-and-plain", DataRaceError, MIXED_ATOMICS, "atomically writes", "source:6", "source:7"),
    fault(
        "write-conflict",
        WriteConflictError,
        f"threadgroup float s[1];\ns[0] = x[i]; {BARRIER} y[i] = s[0];",
        "threadgroup s[0]",
        "source:3",
    ),
    fault("write-conflict-between-threadgroups", WriteConflictError, "y[i % 64] = x[i]; y[i] = 1;", "y["),
    fault(
        "read-of-another-threadgroup",
        DataRaceError,
        "y[i] = x[i]; float a = y[(i + 64) % 128]; y[i] = a;",
        "threadgroups of one launch",
        init_value=0,
    ),
    fault("out-of-bounds-write", OutOfBoundsError, "y[i + 1] = x[i];\n", "y[128] (y has 128 elements)", "source:2"),
    fault("out-of-bounds-read", OutOfBoundsError, "\n\ny[i] = x[i * 2];", "read of 4 bytes at x[128]", "source:4"),
    fault("out-of-bounds-below", OutOfBoundsError, "y[i] = x[int(i) - 1];", "x[-1]"),
    fault("out-of-bounds-threadgroup", OutOfBoundsError, SHARED + f"s[t + 1] = x[i]; {BARRIER} y[i] = s[t];", "s[64] (s has 64 elements)"),
    fault("write-into-an-input", ReadOnlyWriteError, "((device float*)x)[i] = 1; y[i] = 1;", "input x[0]"),
    fault(
        "uninitialised-threadgroup",
        UninitialisedReadError,
        SHARED + f"if (t < 32) s[t] = x[i];\n{BARRIER}\ny[i] = s[t];",
        "threadgroup s[32]",
        "source:5",
    ),
    fault("uninitialised-output", UninitialisedReadError, "y[i] += x[i];", "y[0]"),
    fault("unwritten-output", UnwrittenOutputError, "if (t < 60) y[i] = x[i];", "8 of 128 elements of output y", "flat 60"),
    fault(
        "barrier-after-return", BarrierError, f"if (t > 40) return;\n{BARRIER} y[i] = 1;", "41 of 64", "thread 41 has returned", "source:3"
    ),
    fault(
        "barrier-in-a-branch",
        BarrierError,
        f"if (t < 32) {{ {BARRIER}\n }} else {{\n {BARRIER} }} y[i] = 1;",
        "different threadgroup_barriers",
        "source:2",
        "source:4",
    ),
    fault("barrier-in-a-helper", BarrierError, "if (t < 32) f(); y[i] = 1;", "header:2", header=f"inline void f() {{\n  {BARRIER}\n}}\n"),
    fault(
        "simd-function-in-a-branch",
        SimdgroupError,
        f"float v = x[i]; if (t % 2) v = simd_sum(v); {BARRIER} y[i] = v;",
        "16 lanes",
        "a threadgroup_barrier",
    ),
    fault("shuffle-from-nowhere", SimdgroupError, "y[i] = simd_shuffle(x[i], 40);", "source:2"),
    fault("crash-stack", KernelCrash, "y[i] = f(x[i]);", "SIG", header=ENDLESS),
    fault("crash-division", KernelCrash, "y[i] = 7 / (int(x[i]) - 1);", "SIGFPE"),
]


@pytest.mark.parametrize(("exception", "source", "header", "says", "options"), RUN_CASES)
def test_faults_while_running(exception, source, header, says, options):
    with pytest.raises(exception) as caught:
        run_checked(source, header, **options)
    assert type(caught.value) is exception
    for words in says:
        assert words in str(caught.value)


def test_results_that_depend_on_the_order_of_threads():
    source = "y[i] = atomic_fetch_add_explicit((device atomic_int*)&y[0], 1, memory_order_relaxed);"
    with pytest.raises(MetalHostError):
        run_checked(source, dtype=mx.int32, init_value=0)
    kernel = metal_kernel("ticket", [], ["n", "y"], START + source.replace("&y[0]", "n"))
    arguments = {
        "inputs": [],
        "grid": (64, 1, 1),
        "threadgroup": (64, 1, 1),
        "output_shapes": [(1,), (64,)],
        "output_dtypes": [mx.int32, mx.int32],
    }
    with pytest.raises(ScheduleError, match="output y depends on the order"):
        kernel.run_checked(**arguments, init_value=0)


def test_float_sums_by_atomics_pass_with_a_tolerance():
    source = "atomic_fetch_add_explicit(&y[0], 1.0f / float(x[i] + i), memory_order_relaxed);"
    with pytest.raises(ScheduleError):
        run_checked(source, init_value=0, atomic_outputs=True)
    run_checked(source, init_value=0, atomic_outputs=True, tolerance=1e-5)


def test_equal_values_may_meet():
    assert mx.all(run_checked(f"threadgroup float s[1]; s[0] = 3; {BARRIER} y[i] = s[0];")[0] == 3)


def test_bytes_of_one_element_may_come_from_several_threads():
    source = "device uchar* b = (device uchar*)y; for (uint k = 0; k < 4; k++) b[k * 128 + i] = 0;"
    assert mx.all(run_checked(source)[0] == 0)


@pytest.mark.parametrize("rule", ["goto"])
def test_rules_can_be_switched_off(rule):
    run_checked("if (x[i] > 3) goto end; y[i] = 1; return; end: y[i] = 2;", rules_off=[rule])


def test_generated_signature_that_mlx_gets_wrong():
    kernel = metal_kernel("two", ["x"], ["y", "z"], "y[0] = x_shape[0]; z[0] = 1;")
    arguments = {
        "inputs": [mx.zeros((8,))],
        "grid": (1, 1, 1),
        "threadgroup": (1, 1, 1),
        "output_shapes": [(1,), (1,)],
        "output_dtypes": [mx.float32] * 2,
    }
    with pytest.raises(KernelTextError, match="signature:"):
        kernel(**arguments)
    with pytest.raises(LintError, match="source:1: signature: "):
        kernel.run_checked(**arguments)
