"""How long a step takes on many nodes: the computation of one GPU, and the communication that it does not hide.

A ring moves ``(n - 1) / n`` of a message over every link and takes ``n - 1`` turns (Thakur, Rabenseifner and Gropp,
IJHPCA 19, 2005): a collective of ``bytes`` among n ranks takes

    bytes (n - 1) / n / bandwidth + messages (n - 1) turn

where ``bandwidth`` is that of a node's network (all its cards together; a ring enters and leaves a node once), or of a
GPU's links where all ranks are on one node. Which collectives a ZeRO stage needs is in the ZeRO paper (Rajbhandari et
al., arXiv 1910.02054, section 7). Two numbers stand on no data sheet: the share of the bandwidth that is reached, and
the seconds of a turn. Fitted to published measurements (benchmarks/scaling.py, docs/how/scaling.md), the first is much
the same on two machines, and the second is not: a prediction is uncertain by it, and so it is given as a range.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

BANDWIDTH_SHARE = 0.8  # of the network's and the links' rated bandwidth
TURN_SECONDS = (15e-6, 60e-6)  # of one turn of a ring: on a good network, and on a slow one
# Bytes/s that a GPU sends to the others of its node: NVLink 3 and 4, half of the data sheets' figure for both ways.
LINK_BYTES_PER_SECOND = {"A100": 300e9, "H100": 450e9, "H200": 450e9, "GH200": 450e9}

# Sums of ranks that share matrices (train/tensor_parallel.py) in a layer: of what attention and MLP add; of the
# gradients of what goes into them; where it is computed again, of what attention adds (nothing kept follows the MLP's).
SUMS_FORWARD, SUMS_BACKWARD, SUMS_AGAIN = 2, 2, 1


@dataclass(frozen=True)
class Network:
    """What connects the ranks; bytes a second, one way.

    Attributes:
        node: all network cards of a node together; ``link``: a GPU to the others of its node.
        share: of these that collectives reach; ``turn``: seconds of one turn of a ring.
    """

    gpus_per_node: int
    node: float
    link: float
    turn: float
    share: float = BANDWIDTH_SHARE

    def ring(self, size: float, ranks: int, messages: int) -> float:
        """Seconds of an all-gather or a reduce-scatter of ``size`` bytes, cut into so many messages."""
        if ranks == 1:
            return 0.0
        rated = self.link if ranks <= self.gpus_per_node else min(self.node, self.link)
        return size * (ranks - 1) / ranks / (self.share * rated) + messages * (ranks - 1) * self.turn

    def apart(self, ranks: int) -> Network:
        """The same for each of the rings that go beside one another, one through each of so many ranks side by side."""
        beside = min(ranks, self.gpus_per_node)
        return replace(self, gpus_per_node=self.gpus_per_node // beside, node=self.node / beside)

    def all_to_all(self, size: float, ranks: int, messages: int) -> float:
        """Seconds in which each of some ranks side by side gives ``size`` bytes away, a part to each, at every message.

        Between nodes, all GPUs of a node do so at once through its network.
        """
        rated = self.link if ranks <= self.gpus_per_node else min(self.node / self.gpus_per_node, self.link)
        return size * (ranks - 1) / ranks / (self.share * rated) + messages * (ranks - 1) * self.turn


def network(gpu: str, gpus_per_node: int, node_gbit: float, turn: float) -> Network:
    """The network of a machine; where the links between the GPUs of a node are not known, they are no faster."""
    node = node_gbit / 8 * 1e9
    return Network(gpus_per_node, node, LINK_BYTES_PER_SECOND.get(gpu, node), turn)


@dataclass(frozen=True)
class Work:
    """One optimizer step of one rank.

    Attributes:
        parameters: of the model, or of a rank's parts; ``layers``: what ZeRO-3 gathers one at a time.
        stage: of ZeRO; ``accumulation``: micro-batches a step.
        compute: seconds of a micro-batch's forward and backward pass where nothing is waited for.
        recompute: whether the backward pass computes the forward pass again.
        value_bytes: of a weight and of a gradient on the way.
        bucket_bytes: what stages 0 to 2 send at once, at most.
        sharing: ranks that share a sequence, or ``matrices``; ``exchanged``: bytes one gives them in a micro-batch, in
            so many ``messages``.
    """

    parameters: float
    layers: int
    stage: int
    accumulation: int
    compute: float
    recompute: bool = False
    value_bytes: int = 2
    bucket_bytes: float = 1e9
    sharing: int = 1
    exchanged: float = 0.0
    messages: int = 0
    matrices: bool = False


def step_seconds(work: Work, ranks: int, network: Network) -> float:
    """Seconds of a step, communication beside computation where ZeRO has the two side by side.

    The backward pass takes twice as long as the forward pass, and what it recomputes. Stage 3 gathers the weights in
    both and reduces gradients in every backward pass; stage 2 sums them in every one, stage 1 in a step's last; both
    gather the new weights when the optimizer is done, with nothing to hide it behind. Nor is there for what ranks that
    share sequences exchange in each layer, or for what those that share matrices sum. Stage 0 sums gradients in a
    step's last pass. At stages 1 and 2 a reduction would do; DeepSpeed 0.19 sums, which takes twice as long.
    Where matrices are shared, ZeRO is among the ranks that hold the same parts.
    """
    exchange = network.all_to_all(work.exchanged, work.sharing, work.messages) if work.sharing > 1 else 0.0
    if work.matrices:
        ranks, network = ranks // work.sharing, network.apart(work.sharing)
    return work.accumulation * exchange + _without_exchange(work, ranks, network)


def _without_exchange(work: Work, ranks: int, network: Network) -> float:
    size, forward = work.value_bytes * work.parameters, work.compute / (4 if work.recompute else 3)
    backward = work.compute - forward
    messages = work.layers if work.stage == 3 else max(1, round(size / work.bucket_bytes))
    one = network.ring(size, ranks, messages)
    if work.stage == 3:
        return work.accumulation * (max(forward, one) + max(backward, 2 * one))
    reduced = work.accumulation if work.stage == 2 else 1
    summed = 2 * one  # a reduction and a gathering
    passes = reduced * max(backward, summed) + (work.accumulation - reduced) * backward
    return work.accumulation * forward + passes + (0.0 if work.stage == 0 else one)


def efficiency(work: Work, ranks: int, network: Network) -> float:
    """Share of the time in which a rank computes: 1 where all communication is hidden."""
    return work.accumulation * work.compute / step_seconds(work, ranks, network)


def compute_seconds(measured: float, work: Work, ranks: int, network: Network) -> float:
    """The ``compute`` with which a step takes the ``measured`` seconds on so many ranks; 0 where none is that short."""
    low, high = 0.0, measured / work.accumulation
    for _ in range(60):
        middle = (low + high) / 2
        given = replace(work, compute=middle)
        low, high = (middle, high) if step_seconds(given, ranks, network) < measured else (low, middle)
    return (low + high) / 2
