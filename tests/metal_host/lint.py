"""The subset's rules, by text: what the compilers here would let through and Metal would not, or what the project leaves out."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .compiler import mlx_include, quoted_line
from .errors import UnsupportedPlatformError
from .rewrite import without_comments
from .signature import attributes_in


@dataclass(frozen=True)
class Finding:
    """One place that breaks a rule."""

    piece: str  # "header" or "source"
    line: int
    rule: str
    reason: str
    text: str


# rule: (pattern, reason)
PATTERNS = {
    "double": (r"\bdouble\b", "Metal has no double"),
    "long-long": (r"\blong\s+long\b", "Metal has no long long; long has 64 bits"),
    "std": (r"\bstd\s*::", "Metal's library is metal::, not std::"),
    "new": (r"\bnew\b|\bdelete\b|\bmalloc\s*\(|\bfree\s*\(", "Metal has no dynamic memory"),
    "exceptions": (r"\btry\b|\bthrow\b|\bcatch\b", "Metal has no exceptions"),
    "virtual": (r"\bvirtual\b", "Metal has no virtual functions"),
    "run-time-types": (r"\bdynamic_cast\b|\btypeid\b", "Metal has no run-time type information"),
    "goto": (r"\bgoto\b", "Metal has no goto"),
    "inheritance": (r"\b(?<!enum )(?:struct|class)\s+\w+\s*:(?!:)", "Metal's specification leaves derived classes out"),
    "noexcept": (r"\bnoexcept\b|\bregister\b", "Metal has neither noexcept nor register"),
    "unroll": (
        r"#\s*pragma\s+unroll[ \t]+(?![ \t\d(])[^\n]*",
        "a count that is no number stands in parentheses, the form that Apple's and NVIDIA's compilers both document",
    ),
    "null-pointer": (
        r"\b(?:device|constant|threadgroup|thread)\s+(?:const\s+)?\w+\s*(?:const\s*)?\*\s*\w+\s*=\s*(?:[^;{}]*[?:]\s*)?(?:0|NULL|nullptr)\s*[;:]",
        "no null pointers: whether there is an array is a flag of its own",
    ),
    "literal": (
        r"(?<![\w.])(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][+-]?\d+)?(?![\w.])",
        "a number with a point and without f is a double in CUDA, and slow",
    ),
    "static-local": (
        r"\bstatic\b(?!\s+(?:constexpr|constant|const\s+constant|inline|METAL_FUNC|\[\[))(?=\s+[\w:<>, ]+\s+\w+\s*(?:=|;|\[))",
        "Metal has no static variables outside the constant address space",
    ),
    "thread-local": (r"\bthread_local\b", "Metal has no thread_local"),
    "assembler": (r"\basm\b|\b__asm\w*", "Metal has no inline assembler"),
    "function-pointer": (r"\(\s*\*\s*\w+\s*\)\s*\(", "Metal kernels have no plain function pointers"),
    "lambda": (
        r"(?<![\w\])])\[\s*[&=]?\s*(?:&?\w+\s*,?\s*)*\]\s*(?:\([^()]*\)\s*)?(?:mutable\s*)?(?:->\s*[\w:]+\s*)?\{",
        "Metal before version 4 has no lambdas",
    ),
    "variadic": (r"\bprintf\s*\(|,\s*\.\.\.\s*\)", "Metal has no C variadic functions and no printf"),
    "wide-atomic": (
        r"\batomic\s*<\s*(?:u?int64_t|u?long|half|bfloat\w*|float16_t|double|u?int(?:8|16)_t|u?short|u?char)\s*>|\batomic_u?long\b",
        "Metal's atomics are 32 bits wide",
    ),
    "memory-order": (r"\bmemory_order_(?!relaxed)\w+|\batomic_thread_fence\b", "only memory_order_relaxed works in every version of Metal"),
    "not-metal-math": (
        r"(?<![\w.])(?:erf|erfc|erfinv|expm1|cbrt|lgamma|tgamma|nearbyint|lround|logf|expf|sqrtf|powf|fabsf|sinf|cosf|tanhf)\s*\(",
        "not a function of Metal's library",
    ),
    "newer-c++": (
        r"\brequires\b|\bconcept\b|\bco_(?:await|yield|return)\b|\bconsteval\b|\bconstinit\b",
        "Metal is C++14 (C++17 from version 4)",
    ),
    "threadgroup-in-macro": (
        r"#\s*define\b[^\n]*\bthreadgroup\b[^\n*&]*\[",
        "an array that a macro declares is not seen by the host runner, which would give each thread its own; declare it in the text",
    ),
    "threadgroup-initialiser": (
        r"\bthreadgroup\s+[\w:]+\s+\w+\s*(?:\[[^\]]*\]\s*)*(?:=(?!=)|\{)",
        "threadgroup variables have no initialisers",
    ),
    "pointer-to-pointer": (
        r"\*\s*(?:const\s+)?(?:device|constant|threadgroup|thread)?\s*(?:const\s+)?\*\s*(?:const\s+)?\w+\s*(?:=|;|,|\)|\[)",
        "",
    ),
}
# Words of Metal that the compilers here take for ordinary names.
RESERVED = (
    "kernel vertex fragment mesh object sampler access patch_control_point threadgroup_imageblock ray_data object_data imageblock "
    "stage_in buffer_id atomic_int atomic_uint atomic_bool array_ref packed_float2 packed_float3 packed_float4 depth2d texture1d "
    "texture2d texture3d texturecube texture_buffer interpolant visible_function_table intersection_function_table "
    "acceleration_structure"
)
# What the library has at program scope once MLX's `using namespace metal` is there, and its macros.
LIBRARY = (
    "abs absdiff acos acosh addsat all any asin asinh atan atan2 atanh ceil clamp clz copysign cos cosh cospi cross ctz determinant "
    "distance distance_squared divide dot exp exp10 exp2 extract_bits faceforward fabs fdim floor fma fmax fmax3 fmedian3 fmin fmin3 "
    "fmod fract frexp hadd ilogb insert_bits isfinite isinf isnan isnormal isordered isunordered ldexp length length_squared log log10 "
    "log2 mad24 madhi madsat max max3 median3 min min3 mix modf mul24 mulhi nextafter normalize popcount pow powr precise reflect "
    "refract reverse_bits rhadd rint rotate round rsqrt saturate select sign signbit sin sincos sinh sinpi smoothstep sqrt step subsat "
    "tan tanh tanpi transpose trunc fast as_type threadgroup_barrier simdgroup_barrier mem_flags simd_all simd_any simd_ballot "
    "simd_broadcast simd_broadcast_first simd_is_first simd_max simd_min simd_or simd_and simd_xor simd_product simd_sum "
    "simd_prefix_exclusive_sum simd_prefix_inclusive_sum simd_shuffle simd_shuffle_down simd_shuffle_rotate_down simd_shuffle_rotate_up "
    "simd_shuffle_up simd_shuffle_xor simd_vote quad_sum quad_max quad_min numeric_limits is_same enable_if conditional array vec "
    "matrix atomic level bias gradient2d NAN INFINITY MAXFLOAT MAXHALF CHAR_BIT INT_MAX INT_MIN UINT_MAX LONG_MAX LONG_MIN ULONG_MAX "
    "SHRT_MAX SHRT_MIN USHRT_MAX FP_ILOGB0 FP_ILOGBNAN"
)
LIBRARY_MACRO = r"M_\w+_[FH]|(?:FLT|HALF|BFLT)_\w+|METAL_\w+|ATOMIC_\w+|__\w+"
POINTER_TO_POINTER = "the subset has no pointers to pointers: Metal's buffers cannot hold them"
BUILT_IN_TYPE = (
    r"(?:(?:unsigned|signed)\s+)?(?:float|half|bfloat|bool|char|short|int|uint|ushort|uchar|long|ulong|size_t|u?int(?:8|16|32|64)_t"
    r"|float16_t|bfloat16_t|complex64_t|void)[234]?"
)
SPACES = r"\b(?:device|constant|threadgroup|thread)\b"


def lint(source: str, header: str = "", input_names=(), outputs: int = 1) -> list[Finding]:
    """Every finding, in order of the text."""
    findings = []
    names = own_types(without_comments(header)) | own_types(without_comments(source))
    for piece, text in (("header", header), ("source", source)):
        text = without_comments(text)
        findings += pattern_findings(piece, text, text_defines=header + source)
        findings += unqualified_pointers(piece, text, names) + array_parameters(piece, text, names) + reserved_words(piece, text)
        if piece == "header":
            findings += program_scope(text) + recursion(text) + library_names(text)
    findings += around_the_signature(source, header, input_names, outputs)
    return sorted(findings, key=lambda finding: (finding.piece != "header", finding.line))


def message(kernel: str, findings: list[Finding], originals: dict[str, str]) -> str:
    """The findings for a person."""
    lines = [f"[metal_host] kernel `{kernel}` breaks {len(findings)} rule{'s' if len(findings) > 1 else ''}:"]
    for finding in findings:
        lines.append(f"  {finding.piece}:{finding.line}: {finding.rule}: {finding.reason}: `{finding.text}`")
        lines += quoted_line(originals, finding.piece, finding.line)
    return "\n".join(lines)


def lint_file(path: Path) -> list[str]:
    """The findings in a file of kernel text, as `path:line: rule: reason: text`."""
    findings = lint("", path.read_text())
    return [f"{path}:{finding.line}: {finding.rule}: {finding.reason}: `{finding.text}`" for finding in findings]


def found(piece: str, text: str, at: int, rule: str, reason: str, words: str) -> Finding:
    """A finding at a place in the text."""
    return Finding(piece, text.count("\n", 0, at) + 1, rule, reason, " ".join(words.split()))


def pattern_findings(piece: str, text: str, text_defines: str) -> list[Finding]:
    """The rules that are one pattern each."""
    findings = []
    for rule, (pattern, reason) in PATTERNS.items():
        for match in re.finditer(pattern, text):
            words = match.group(0).strip()
            if rule == "not-metal-math" and re.search(rf"\b\w+\s+{words.split('(')[0].strip()}\s*\([^()]*\)\s*\{{", text_defines):
                continue  # the kernel's own function of that name
            if rule == "pointer-to-pointer":
                reason = POINTER_TO_POINTER
                if not re.search(SPACES + r"|[;{(]\s*\w+\s*$", text[max(0, match.start() - 40) : match.end()]):
                    continue
            findings.append(found(piece, text, match.start(), rule, reason, words))
    return findings


def own_types(text: str) -> set[str]:
    """The names that the text itself gives to types."""
    names = set(re.findall(r"\b(?:typename|class|struct)\s+(\w+)", text))
    names |= set(re.findall(r"\busing\s+(\w+)\s*=", text))
    return names | set(re.findall(r"\btypedef\b[^;]*?(\w+)\s*;", text))


def unqualified_pointers(piece: str, text: str, names: set[str]) -> list[Finding]:
    """Pointers and references that name no address space: an error in Metal, `generic` or nothing here."""
    types = "|".join([BUILT_IN_TYPE, r"(?:metal::)?vec\s*<[^<>;]*>", *sorted(map(re.escape, names))])
    pattern = rf"(?<![\w.>])(?:{types})\s*(?:const\s*)?(?:\*+|&)(?!&)\s*(?:const\s+)?(?=\w|[,)>])"
    findings = []
    for match in re.finditer(pattern, text):
        begin = max(text.rfind(mark, 0, match.start()) for mark in ";{}(,<") + 1
        before = text[begin : match.end()]
        if not re.search(SPACES, before) and not text[:begin].rstrip("(").endswith("sizeof") and is_declaration(text, match):
            reason = "every pointer and reference names its address space in Metal (device, constant, threadgroup, thread)"
            findings.append(found(piece, text, match.start(), "address-space", reason, match.group(0)))
    return findings


def array_parameters(piece: str, text: str, names: set[str]) -> list[Finding]:
    """Arrays as parameters: pointers, which here name no address space."""
    types = "|".join([BUILT_IN_TYPE, *sorted(map(re.escape, names))])
    pattern = rf"[(,]\s*((?:const\s+)?(?:{types})\s+(?:const\s+)?\w+\s*\[[^\]]*\]\s*)(?=[,)])"
    reason = "an array as a parameter is a pointer without an address space; write `thread T* name`"
    return [found(piece, text, match.start(1), "array-parameter", reason, match[1]) for match in re.finditer(pattern, text)]


def reserved_words(piece: str, text: str) -> list[Finding]:
    """Metal's own words as names of variables, parameters and functions."""
    pattern = rf"\b(?:{BUILT_IN_TYPE})\s*[*&]?\s*\b({'|'.join(RESERVED.split())})\b\s*(?=[=;,)\[({{])"
    return [found(piece, text, m.start(1), "reserved", "a word of Metal", m[1]) for m in re.finditer(pattern, text)]


def library_names(header: str) -> list[Finding]:
    """Functions, types, constants and macros whose names are those of Metal's library, or of what MLX puts before a kernel."""
    taken, findings = {*LIBRARY.split(), *mlx_names()}, []
    for match in defined_names(header):
        if match[1] in taken or re.fullmatch(LIBRARY_MACRO, match[1]):
            reason = "Metal's library or MLX's header has this name already"
            findings.append(found("header", header, match.start(1), "library-name", reason, match[1]))
    return findings


def defined_names(header: str) -> Iterator[re.Match]:
    """What a header defines outside functions and structs."""
    flat = outside_braces(header)
    patterns = [(header, r"#\s*define\s+(\w+)"), (flat, r"\b(?:struct|class|enum)\s+(\w+)\s*\{?\s*(?=[\s:;}]|$)")]
    patterns += [(flat, r"\busing\s+(\w+)\s*="), (flat, r"\btypedef\b[^;]*?(\w+)\s*;"), (flat, r"[\w>*&]\s+(\w+)\s*\([^;{}]*\)\s*\{")]
    for text, pattern in patterns:
        yield from re.finditer(pattern, text)
    for enum in re.finditer(r"\benum\b[^{};()]*\{", flat):
        yield from re.compile(r"(?<![=\w.])\b([A-Za-z_]\w*)\s*(?=[=,}])").finditer(header, enum.end(), header.find("}", enum.end()) + 1)


@functools.cache
def mlx_names() -> frozenset[str]:
    """The names that MLX's utilities define; none where MLX comes without its Metal headers."""
    try:
        folder = mlx_include() / "mlx/backend/metal/kernels"
    except UnsupportedPlatformError:
        return frozenset()
    text = "\n".join(without_comments((folder / f"{name}.h").read_text()) for name in ("utils", "bf16", "complex", "defines"))
    return frozenset(match[1] for match in defined_names(text.replace("METAL_FUNC", "inline")))


def is_declaration(text: str, match: re.Match) -> bool:
    """False for a product such as `N * size` where N is a template parameter's name."""
    following = re.match(r"\w+\s*(=(?!=)|;|,|\)|\[|\(|:)|[,)>]", text[match.end() :])
    before = text[: match.start()].rstrip()
    return bool(following) and not re.search(r"[=+\-*/%<>?&|!]$|\breturn$|\[$", before.removesuffix("const").rstrip())


def outside_braces(text: str) -> str:
    """The text with everything inside braces blanked."""
    kept, depth = [], 0
    for letter in text:
        depth -= letter == "}"
        kept.append(letter if depth == 0 or letter == "\n" else " ")
        depth += letter == "{"
    return "".join(kept)


def program_scope(header: str) -> list[Finding]:
    """Variables outside functions: constants in the constant address space only."""
    findings, flat = [], re.sub(r"(?m)^[ \t]*#(?:\\\n|[^\n])*", lambda m: re.sub(r"[^\n]", " ", m[0]), outside_braces(header))
    pattern = (
        rf"(?:^|(?<=[;}}]))\s*((?:(?:static|const|constexpr|inline)\s+)*{BUILT_IN_TYPE}\s+\w+\s*(?:\[[^\]]*\]\s*)*(?:=|\{{(?!\s*\}})|;))"
    )
    for match in re.finditer(pattern, flat):
        reason = "a variable outside functions must be in the constant address space"
        findings.append(found("header", flat, match.start(1), "program-scope", reason, match[1]))
    for match in re.finditer(r"(?<![(,])\s\s*threadgroup\s+[\w:]+\s+\w+\s*(?:\[[^\]]*\]\s*)*;", "\n" + header):
        reason = "threadgroup variables belong into the kernel's body; pass helper functions a pointer"
        findings.append(found("header", header, match.end() - 2, "threadgroup-scope", reason, match[0].strip()))
    return findings


def recursion(header: str) -> list[Finding]:
    """Functions that call themselves by name."""
    findings = []
    for match in re.finditer(r"\b(\w+)\s*\([^;{}]*\)\s*(?:const\s*)?\{", header):
        name = match[1]
        if name in ("if", "for", "while", "switch"):
            continue
        depth, at = 1, match.end()
        while at < len(header) and depth:
            depth += {"{": 1, "}": -1}.get(header[at], 0)
            at += 1
        if re.search(rf"(?<![\w.:]){name}\s*(?:<[^;<>]*>)?\s*\(", header[match.end() : at]):
            reason = "Metal kernels cannot recurse (give overloads of one name different names)"
            findings.append(found("header", header, match.start(), "recursion", reason, name))
    return findings


def around_the_signature(source: str, header: str, input_names, outputs: int) -> list[Finding]:
    """What goes wrong between the author's text and MLX's."""
    findings = []
    last = header.rsplit("\n", 1)[-1]
    if last.strip() and ("//" in last or last.lstrip().startswith("#")):
        reason = "MLX puts the kernel's signature right behind the header: end it with a newline"
        findings.append(Finding("header", header.count("\n") + 1, "header-end", reason, last.strip()))
    uses_shape = next(
        (f"{name}_{what}" for name in input_names for what in ("shape", "strides", "ndim") if f"{name}_{what}" in source), None
    )
    if outputs > 1 and uses_shape and not attributes_in(source):
        reason = (
            "with several outputs, MLX generates a wrong signature for a body that names this and no thread_position_in_grid or the like"
        )
        findings.append(Finding("source", source[: source.index(uses_shape)].count("\n") + 1, "signature", reason, uses_shape))
    return findings
