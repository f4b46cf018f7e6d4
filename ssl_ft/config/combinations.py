"""Settings that do not go together, each with the reason: ways of computing a step, and what is finetune's alone."""

# What a stage that trains as finetune does leaves alone, with the reason.
_OF_FINETUNE = {
    "also": "further labelled sources are joined by finetune alone",
    "also_classes": "further labelled sources are joined by finetune alone",
    "tta": "test is predicted from one view of each image here, and outputs are averaged by finetune and predict alone",
    "regression": "numbers are learnt by finetune alone",
}


def finetune_alone(given: set[str], *, prefix: str = "") -> list[str]:
    """A sentence for each setting that was given and concerns finetune alone.

    Args:
        given: names of fields of `FinetuneSettings` that were set.
        prefix: of their names, as the person wrote them.
    """
    return [f"{prefix}{key}: {why}; leave it out" for key, why in _OF_FINETUNE.items() if key in given]


def misfits(
    objective: str, optimizer: str, *, sharding: str, compile: str, has_ema: bool, num_parts: int, is_recomputed: bool
) -> list[str]:
    """A sentence for each pair of settings that is refused.

    Args:
        objective: its name.
        optimizer: its name.
        sharding: none or fsdp.
        compile: none, default or cudagraphs.
        has_ema: whether a running average of the encoder is kept.
        num_parts: parts a batch is cut into.
        is_recomputed: whether activations are computed twice.
    """
    problems = []
    if sharding == "fsdp":
        if optimizer in ("lars", "muon"):
            problems.append(
                f"sharding=fsdp with optim.name={optimizer}: its updates need whole matrices, and a rank has some rows "
                "of each; use adamw or sgd, or leave sharding out"
            )
        if has_ema:
            problems.append(
                "sharding=fsdp with optim.ema: the running average is not shared out; leave one of them out"
            )
        if num_parts > 1 and objective in ("simclr", "dcl", "joint"):
            problems.append(
                f"sharding=fsdp with optim.accumulate={num_parts} and objective={objective}: the encoder's weights are "
                "together during a whole step only, and features are cached in parts of one; use "
                "activation_checkpointing=true or more devices to save memory"
            )
        if compile != "none":
            problems.append(f"sharding=fsdp with compile={compile}: this is not tried out; leave one of them out")
    if compile != "none" and objective == "joint":
        problems.append(
            f"compile={compile} with objective=joint: the gradients of its two terms are compared now and then, which "
            "compiled networks do not allow; leave compile out"
        )
    if compile != "none" and is_recomputed:
        problems.append(
            f"compile={compile} with activation_checkpointing=true: the compiler has its own way of keeping fewer "
            "activations; leave one of them out"
        )
    if compile == "cudagraphs" and num_parts > 1:
        problems.append(
            f"compile=cudagraphs with optim.accumulate={num_parts}: a graph's results are gone when it is replayed for "
            "the next part; use compile=default"
        )
    return problems
