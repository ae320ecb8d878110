"""What every rank of a start can: machines may differ (a node without a C compiler), and all compute alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from common.terminal import say
from train.ranks import Place, gathered, node_name


def agree_on_attention(place: Place, ways: Mapping[str, str]) -> str:
    """The back end for all ranks: the best that each of them can. Collective.

    Args:
        ways: of this rank, as of :func:`train.attention.ways`; the last is one that every rank has.
    """
    every = gathered(place, (node_name(), dict(ways)))
    longest_first = sorted((can for _, can in every), key=len, reverse=True)
    kinds = list(dict.fromkeys(kind for can in longest_first for kind in can))
    able = [kind for kind in kinds if all(can.get(kind) == "" for _, can in every)]
    better = kinds[: kinds.index(able[0])]
    wanted = next((kind for kind in better if any(can.get(kind) == "" for _, can in every)), None)
    if wanted and place.first:
        weak = [(node, can.get(wanted, "it is no choice there")) for node, can in every if can.get(wanted) != ""]
        say(f"attention {able[0]} on all ranks, not {wanted}: {_who(weak)}")
    return able[0]


def agree_on_compiling(place: Place, mine: bool) -> bool:
    """Whether layers are compiled: on all ranks, or on none. Collective."""
    every = gathered(place, (node_name(), mine))
    weak = [(node, "torch's compiler wants Triton and a C compiler") for node, can in every if not can]
    if weak and len(weak) < len(every) and place.first:
        say(f"no layers are compiled on any rank: {_who(weak)}")
    return not weak


def _who(weak: Sequence[tuple[str, str]]) -> str:
    """The machines that cannot, once each, and why the first of them cannot."""
    nodes = list(dict.fromkeys(node for node, _ in weak))
    others = f", ... ({len(nodes)} machines)" if len(nodes) > 4 else ""
    return f"not on {', '.join(nodes[:4])}{others} ({weak[0][1].removesuffix('; take sdpa')})"
