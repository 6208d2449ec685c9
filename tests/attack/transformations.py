"""Ways to get a problem's outputs and derivatives through MLX's transformations, each judged by the float64 loops like the plain call."""

from pathlib import Path
from tempfile import TemporaryDirectory

import mlx.core as mx

from .problems import loss, run


def plain_outputs(problem):
    return run(problem, problem.leaves)


def compiled(problem):
    return mx.compile(lambda leaves: run(problem, leaves))(problem.leaves)


def checkpointed(problem):
    return mx.checkpoint(lambda leaves: run(problem, leaves))(problem.leaves)


def mapped(problem):
    """mx.vmap over all leaves; the second of two calls is the problem."""
    return {name: a[1] for name, a in mx.vmap(lambda leaves: run(problem, leaves))(pairs(problem)).items()}


def mapped_inputs(problem):
    """mx.vmap over x alone."""
    x, others = pairs(problem)["x"], {name: a for name, a in problem.leaves.items() if name != "x"}
    return {name: a[1] for name, a in mx.vmap(lambda x: run(problem, {"x": x, **others}))(x).items()}


def exported(problem):
    names = list(plain_outputs(problem))
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "layer.mlxfn")
        keys = list(problem.leaves)
        values = list(problem.leaves.values())
        mx.export_function(path, lambda *given: [run(problem, dict(zip(keys, given, strict=True)))[name] for name in names], *values)
        outputs = dict(zip(names, mx.import_function(path)(*values), strict=True))
        mx.eval(outputs)
    return outputs


def pairs(problem):
    """Each leaf after another one like it."""
    return {name: mx.stack([a * 0.5, a]) for name, a in problem.leaves.items()}


def scalar(problem):
    return lambda leaves: loss(problem, leaves)


def plain_gradient(problem):
    return mx.grad(scalar(problem))(problem.leaves)


def compiled_gradient(problem):
    return mx.compile(mx.grad(scalar(problem)))(problem.leaves)


def gradient_of_compiled(problem):
    return mx.grad(mx.compile(scalar(problem)))(problem.leaves)


def gradient_of_checkpointed(problem):
    return mx.grad(mx.checkpoint(scalar(problem)))(problem.leaves)


def mapped_gradient(problem):
    return {name: a[1] for name, a in mx.vmap(mx.grad(scalar(problem)))(pairs(problem)).items()}


def gradient_of_mapped(problem):
    return {name: a[1] for name, a in mx.grad(lambda leaves: mx.vmap(scalar(problem))(leaves).sum())(pairs(problem)).items()}


def pulled_back(problem):
    """mx.vmap of a pull: two multiples of the cotangent, of which the second is the problem's."""
    names = list(problem.leaves)

    def pull(cotangent):
        return mx.vjp(lambda *values: scalar(problem)(dict(zip(names, values, strict=True))), list(problem.leaves.values()), [cotangent])[1]

    one = mx.ones((), dtype=mx.float64 if problem.config["dtype"] == "float64" else mx.float32)
    return {name: a[1] for name, a in zip(names, mx.vmap(pull)(mx.stack([-3 * one, one])), strict=True)}


def tangents(problem):
    return [mx.array(problem.directions[name], mx.float64).astype(a.dtype) for name, a in problem.leaves.items()]


def pushed(function):
    """The derivative of a function of the leaves in the problem's directions, as a function of the leaves' list."""

    def along(problem):
        names = list(problem.leaves)

        def push(*values):
            return mx.jvp(lambda *given: function(problem)(dict(zip(names, given, strict=True))), list(values), tangents(problem))[1][0]

        return push

    return along


def pushed_forward(problem):
    return pushed(scalar)(problem)(*problem.leaves.values())


def compiled_push(problem):
    return mx.compile(pushed(scalar)(problem))(*problem.leaves.values())


def mapped_push(problem):
    return mx.vmap(pushed(scalar)(problem))(*pairs(problem).values())[1]


def hessian_times(problem, leaves):
    """The gradient of the slope in the problem's directions."""
    directions = dict(zip(problem.leaves, tangents(problem), strict=True))

    def slope(leaves):
        gradient = mx.grad(scalar(problem))(leaves)
        return sum((gradient[name] * directions[name]).sum() for name in directions)

    return mx.grad(slope)(leaves)


def gradient_of_gradient(problem):
    return hessian_times(problem, problem.leaves)


def compiled_hessian(problem):
    return mx.compile(lambda leaves: hessian_times(problem, leaves))(problem.leaves)


def mapped_hessian(problem):
    return {name: a[1] for name, a in mx.vmap(lambda leaves: hessian_times(problem, leaves))(pairs(problem)).items()}


def gradient_of_push(problem):
    names = list(problem.leaves)
    gradient = mx.grad(lambda *values: pushed(scalar)(problem)(*values), argnums=list(range(len(names))))
    return dict(zip(names, gradient(*problem.leaves.values()), strict=True))


def push_of_gradient(problem):
    names = list(problem.leaves)

    def gradient(*values):
        return list(mx.grad(scalar(problem))(dict(zip(names, values, strict=True))).values())

    return dict(zip(names, mx.jvp(gradient, list(problem.leaves.values()), tangents(problem))[1], strict=True))


COMPILED = {compiled, compiled_gradient, gradient_of_compiled, compiled_push, compiled_hessian}
OUTPUTS = [compiled, checkpointed, mapped, mapped_inputs, exported]
GRADIENTS = [compiled_gradient, gradient_of_compiled, gradient_of_checkpointed, mapped_gradient, gradient_of_mapped, pulled_back]
SLOPES = [pushed_forward, compiled_push, mapped_push]
CURVATURES = [gradient_of_gradient, gradient_of_push, push_of_gradient, compiled_hessian, mapped_hessian]
