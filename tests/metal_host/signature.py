"""The kernel function that MLX generates around a body, byte for byte what `verbose=True` prints."""

from dataclasses import dataclass

import mlx.core as mx

from .arrays import METAL_TYPES, HostArray

# Metal's built-in kernel arguments, in the order in which MLX adds them, with their types.
ATTRIBUTES = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}
SMALLEST_DEVICE_ARRAY = 8  # MLX puts arrays with fewer elements into the constant address space


@dataclass(frozen=True)
class Parameter:
    """One buffer parameter of the kernel function."""

    name: str
    type: str  # as declared, with its `*` or `&`
    content: str  # "input", "shape", "strides", "ndim" or "output"
    array: int  # which input or output it belongs to


@dataclass(frozen=True)
class TemplateArgument:
    """One template argument: `typename T = float16_t`, `int N = 3`, `bool B = 1`."""

    name: str
    kind: str
    value: str


@dataclass(frozen=True)
class Signature:
    """The generated function: the code before and after the body, and its call."""

    function: str
    opening: str
    instantiation: str
    template: str  # "<float16_t, 3>" or nothing
    parameters: tuple[Parameter, ...]
    attributes: tuple[str, ...]

    def text(self, header: str, source: str) -> str:
        """The whole source, as MLX passes it to the Metal compiler (after its utilities)."""
        return f"{header}{self.opening}{source}\n}}\n{self.instantiation}"


def template_arguments(template) -> list[TemplateArgument]:
    """The template arguments as MLX reads `template=[(name, dtype | int | bool), ...]`."""
    arguments = []
    for name, value in template or []:
        if isinstance(value, bool):
            arguments.append(TemplateArgument(name, "bool", str(int(value))))
        elif isinstance(value, int):
            arguments.append(TemplateArgument(name, "int", str(value)))
        elif isinstance(value, mx.Dtype):
            arguments.append(TemplateArgument(name, "typename", METAL_TYPES[value]))
        else:
            raise ValueError("[metal_kernel] Invalid template argument. Must be `mlx.core.Dtype`, `int` or `bool`.")
    return arguments


def attributes_in(source: str) -> tuple[str, ...]:
    """The built-in arguments whose names occur anywhere in the body."""
    return tuple(name for name in ATTRIBUTES if name in source)


def parameters_for(input_names, inputs: list[HostArray], output_names, output_dtypes, source: str, atomic_outputs: bool):
    """The buffer parameters, in order."""
    parameters = []
    for index, (name, array) in enumerate(zip(input_names, inputs, strict=True)):
        space = "constant" if array.size < SMALLEST_DEVICE_ARRAY else "device"
        reference = "&" if array.ndim == 0 else "*"
        parameters.append(Parameter(name, f"const {space} {array.metal_type}{reference}", "input", index))
        if array.ndim == 0:
            continue
        for content, kind in (("shape", "int*"), ("strides", "int64_t*"), ("ndim", "int&")):
            if f"{name}_{content}" in source:
                parameters.append(Parameter(f"{name}_{content}", f"const constant {kind}", content, index))
    for index, (name, dtype) in enumerate(zip(output_names, output_dtypes, strict=True)):
        kind = METAL_TYPES[dtype]
        parameters.append(Parameter(name, f"device {f'atomic<{kind}>' if atomic_outputs else kind}*", "output", index))
    return tuple(parameters)


def function_name(name: str, template: list[TemplateArgument], inputs: list[HostArray], output_dtypes) -> str:
    """MLX's name: the kernel's, its template arguments, and the types of its arrays (s: 0-d, c: constant)."""
    parts = [f"custom_kernel_{name}"]
    if template:
        parts.append("_" + "_".join(argument.value.replace("-", "_") for argument in template))
    for array in inputs:
        suffix = "s" if array.ndim == 0 else "c" if array.size < SMALLEST_DEVICE_ARRAY else ""
        parts.append(array.metal_type + suffix)
    parts.extend(METAL_TYPES[dtype] for dtype in output_dtypes)
    return "_".join(parts)


def generate(name, input_names, inputs, output_names, output_dtypes, source, template=None, atomic_outputs=False) -> Signature:
    """Generate the function for these inputs, as MLX does."""
    arguments = template_arguments(template)
    function = function_name(name, arguments, inputs, output_dtypes)
    parameters = parameters_for(input_names, inputs, output_names, output_dtypes, source, atomic_outputs)
    attributes = attributes_in(source)
    values = f"<{', '.join(argument.value for argument in arguments)}>" if arguments else ""
    instantiation = ""
    if arguments:
        instantiation = f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({function}{values}) {function}{values};\n'
    opening = opening_text(function, arguments, parameters, attributes, len(inputs) + len(output_names))
    return Signature(function, opening, instantiation, values, parameters, attributes)


def opening_text(function, arguments, parameters, attributes, arrays: int) -> str:
    """Everything from `template <...>` to the body's opening brace."""
    lines = []
    if arguments:
        lines.append(f"template <{', '.join(f'{argument.kind} {argument.name}' for argument in arguments)}>")
    lines.append(f"[[kernel]] void {function}(")
    for index, parameter in enumerate(parameters):
        # MLX compares the buffer's index with the number of arrays, shapes not counted: with several outputs, a shape and no
        # attribute, it closes the list too early. The text is its text, faults included; `lint` explains the fault.
        closes = parameter.content == "output" and index >= arrays - 1 and not attributes
        lines.append(f"  {parameter.type} {parameter.name} [[buffer({index})]]{') {' if closes else ','}")
    for index, attribute in enumerate(attributes):
        closes = index == len(attributes) - 1
        lines.append(f"  {ATTRIBUTES[attribute]} {attribute} [[{attribute}]]{') {' if closes else ','}")
    return "\n".join(lines) + "\n"


def printed(name: str, text: str) -> str:
    """What `verbose=True` prints."""
    return f"Generated source code for `{name}`:\n```\n{text}\n```"
