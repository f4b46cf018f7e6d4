"""Parameters that a loss never reaches are frozen: they would stay as they are anyway, and ranks would wait for their
gradients.
"""

from torch import Tensor, nn


def freeze_unreached(module: nn.Module, result: Tensor) -> list[str]:
    """Set `requires_grad` to False on the parameters of `module` that `result` does not depend on.

    Decided by the graph alone, not by values: a gradient that happens to be 0 counts as one.

    Args:
        module: whose parameters.
        result: what the loss is made from, computed by the module, with its graph.

    Returns:
        Names of the frozen ones.
    """
    assert result.grad_fn is not None, "the result has a graph"
    waiting, seen, reached = [result.grad_fn], {result.grad_fn}, set[int]()
    while waiting:
        node = waiting.pop()
        if (leaf := getattr(node, "variable", None)) is not None:
            reached.add(id(leaf))
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        waiting += following
    unreached = [(name, p) for name, p in module.named_parameters() if p.requires_grad and id(p) not in reached]
    for _, parameter in unreached:
        parameter.requires_grad_(False)
    return [name for name, _ in unreached]
