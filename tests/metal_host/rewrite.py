"""Converts a kernel's Metal source to the two sources that clang compiles: one to run, one to check address spaces."""

import re

from .signature import Signature

ELEMENT = r"(?:float|half|bfloat|int|uint|short|ushort|char|uchar|long|ulong|bool)"
VECTOR = rf"{ELEMENT}[234]|vec\s*<\s*\w+\s*,\s*\w+\s*>"
# `threadgroup float a[N], b;` as a statement: at a line's start or after ; { }.
THREADGROUP_VARIABLE = re.compile(
    r"(?P<before>(?:(?<=[;{}])|^)\s*)"
    r"(?P<qualifiers>(?:(?:alignas\([^()]*\)|volatile)\s+)*)threadgroup\s+"
    r"(?P<type>(?:(?:alignas\([^()]*\)|volatile|unsigned)\s+)*[\w:]+(?:\s*<[^;<>]*(?:<[^;<>]*>[^;<>]*)?>)?)\s+"
    r"(?P<names>\w+\s*(?:\[[^\]]*\]\s*)*(?:,\s*\w+\s*(?:\[[^\]]*\]\s*)*)*);",
    re.M,
)
LITERAL = re.compile(r"(?<![\w.])((?:\d+\.\d*|\.\d+|\d+)(?:[eE][+-]?\d+)?)(h|H|bf|BF)\b")

# The source of each built-in argument; `c` is the thread's msl_context.
ATTRIBUTE_VALUES = {
    "dispatch_quadgroups_per_threadgroup": "c->simdgroups * 8",
    "dispatch_simdgroups_per_threadgroup": "c->simdgroups",
    "dispatch_threads_per_threadgroup": "msl_three(c->dispatched_group_size)",
    "grid_origin": "uint3{0, 0, 0}",
    "grid_size": "msl_three(c->grid)",
    "quadgroup_index_in_threadgroup": "c->index / 4",
    "quadgroups_per_threadgroup": "c->simdgroups * 8",
    "simdgroup_index_in_threadgroup": "c->simdgroup",
    "simdgroups_per_threadgroup": "c->simdgroups",
    "thread_execution_width": "32u",
    "thread_index_in_quadgroup": "c->index % 4",
    "thread_index_in_simdgroup": "c->lane",
    "thread_index_in_threadgroup": "c->index",
    "thread_position_in_grid": "msl_three(c->position_in_grid)",
    "thread_position_in_threadgroup": "msl_three(c->position_in_group)",
    "threadgroup_position_in_grid": "msl_three(c->group_position)",
    "threadgroups_per_grid": "msl_three(c->groups)",
    "threads_per_grid": "msl_three(c->grid)",
    "threads_per_simdgroup": "32u",
    "threads_per_threadgroup": "msl_three(c->group_size)",
}


def without_comments(text: str) -> str:
    """Replace comments by blanks, keeping lines and columns."""

    def blank(match: re.Match) -> str:
        found = match.group(0)
        return re.sub(r"[^\n]", " ", found) if found.startswith("/") else found

    return re.sub(r'//(?:\\\n|[^\n])*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', blank, text, flags=re.S)


def vector_names(text: str) -> str:
    """A pattern for the vector types of this source, including its aliases."""
    aliases = re.findall(rf"\busing\s+(\w+)\s*=\s*(?:metal::)?(?:{VECTOR})\s*;", text)
    aliases += re.findall(rf"\btypedef\s+(?:metal::)?(?:{VECTOR})\s+(\w+)\s*;", text)
    return "|".join([VECTOR, *map(re.escape, aliases)])


def rewrite_vectors(text: str, vector: str) -> str:
    """`float4(a, b)`, `static_cast<float4>(v)` and `(float4)v` in clang's syntax."""
    text = re.sub(rf"\bstatic_cast\s*<\s*(?:metal::)?({vector})\s*>\s*\(", r"::metal::make<\1>(", text)
    text = re.sub(rf"(?<![\w)>])\(\s*(?:metal::)?({vector})\s*\)\s*(?=[\w(])", r"::metal::caster<\1>()->*", text)
    return re.sub(rf"(?<!operator )(?<![\w.])(?:metal::)?({vector})\s*\(", r"::metal::make<\1>(", text)


def split_names(names: str) -> list[tuple[str, str]]:
    """`a[2][3], b` as [("a", "[2][3]"), ("b", "")]."""
    return [re.match(r"\s*(\w+)\s*(.*?)\s*$", one, re.S).groups() for one in re.split(r",(?![^\[]*\])", names)]


def threadgroup_for_run(match: re.Match) -> str:
    """One object for all threads, and its name for the access checker."""
    named = " ".join(f"MSL_NAME({name})" for name, _ in split_names(match["names"]))
    return f"{match['before']}MSL_THREADGROUP_VARIABLE {match['qualifiers']}{match['type']} {match['names']}; {named}"


def threadgroup_for_check(match: re.Match) -> str:
    """A reference into threadgroup memory: OpenCL has such variables in kernels only, and no kernel templates."""
    kind = re.sub(r"alignas\([^()]*\)\s*", "", match["type"])
    references = (f"threadgroup {kind} (&{name}){size} = *(threadgroup {kind} (*){size})16;" for name, size in split_names(match["names"]))
    return match["before"] + " ".join(references)


def rewritten(text: str, vector: str, check: bool) -> str:
    """One piece of the kernel's source for clang, with the same lines."""
    text = rewrite_vectors(text, vector)
    text = LITERAL.sub(lambda m: f"(({'half' if m[2] in 'hH' else 'bfloat'}){m[1]})", text)
    return THREADGROUP_VARIABLE.sub(threadgroup_for_check if check else threadgroup_for_run, text)


def entry_text(signature: Signature) -> str:
    """The function that the runtime calls for every thread."""
    arguments = []
    for index, parameter in enumerate(signature.parameters):
        pointer = parameter.type.replace("&", "*")
        arguments.append(f"{'*' if parameter.type.endswith('&') else ''}({pointer})b[{index}]")
    arguments += [ATTRIBUTE_VALUES[attribute] for attribute in signature.attributes]
    call = f"{signature.function}{signature.template}({', '.join(arguments)})"
    return f'#include "kernel_entry.h"\nMSL_ENTRY void msl_entry(void** b, const msl_context* c) {{ {call}; }}\n'


def pieces(signature: Signature, header: str, source: str, check: bool) -> str:
    """Everything between the prelude and the entry, each piece under its own name for messages."""
    header, source = without_comments(header), without_comments(source)
    vector = vector_names(header + source)
    return (
        f'#line 1 "header"\n{rewritten(header, vector, check)}\n'
        f'#line 1 "signature"\n{signature.opening}'
        f'#line 1 "source"\n{rewritten(source, vector, check)}\n'
        '#line 1 "end of source"\n}\n'
    )


def text_to_run(signature: Signature, header: str, source: str) -> str:
    """The C++ source that is compiled and run."""
    return pieces(signature, header, source, check=False) + '#line 1 "entry"\n' + entry_text(signature)


def text_to_check(signature: Signature, header: str, source: str) -> str:
    """The source with real address spaces; it is only parsed, with the kernel's templates instantiated."""
    instantiation = f"template decltype({signature.function}{signature.template}) {signature.function}{signature.template};\n"
    return pieces(signature, header, source, check=True) + (instantiation if signature.template else "")
