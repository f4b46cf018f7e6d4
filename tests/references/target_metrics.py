"""Multi-label and regression scores written slowly from their definitions; they share no code with the package."""

import math


def average_precision_by_loops(truth: list[int], scores: list[float]) -> float:
    """Walk down the distinct scores; precision at each times the recall gained there."""
    positives = sum(truth)
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        taken = [t for t, s in zip(truth, scores, strict=True) if s >= threshold]
        recall = sum(taken) / positives
        total += (recall - recall_before) * sum(taken) / len(taken)
        recall_before = recall
    return total


def auroc_by_pairs(truth: list[int], scores: list[float]) -> float:
    """Share of (positive, negative) pairs in the right order, ties counting half."""
    won, pairs = 0.0, 0
    for t, s in zip(truth, scores, strict=True):
        for other_t, other_s in zip(truth, scores, strict=True):
            if t == 1 and other_t == 0:
                won += 1.0 if s > other_s else 0.5 if s == other_s else 0.0
                pairs += 1
    return won / pairs


def ranks_by_counting(values: list[float]) -> list[float]:
    """How many are smaller, and half of the equal ones besides oneself, from one."""
    return [1 + sum(o < v for o in values) + (sum(o == v for o in values) - 1) / 2 for v in values]


def pearson_by_loops(a: list[float], b: list[float]) -> float:
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    top = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    return top / math.sqrt(sum((x - mean_a) ** 2 for x in a) * sum((y - mean_b) ** 2 for y in b))


def numbers_by_loops(truth: list[float], predictions: list[float]) -> list[float]:
    """MAE, RMSE, R², Spearman."""
    errors = [p - t for t, p in zip(truth, predictions, strict=True)]
    mean = sum(truth) / len(truth)
    squares = sum(e * e for e in errors)
    return [
        sum(abs(e) for e in errors) / len(errors),
        math.sqrt(squares / len(errors)),
        1 - squares / sum((t - mean) ** 2 for t in truth),
        pearson_by_loops(ranks_by_counting(truth), ranks_by_counting(predictions)),
    ]
