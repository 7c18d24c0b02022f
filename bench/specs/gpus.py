"""Cards by name: how much memory they have, how fast it is, and how fast their matrix units are, as their makers say.

Memory is the label's, in GB; what a card reports to a program differs by a few percent. Bandwidth is that of the data
sheet in GB/s, of which copies reach some 90 %. TFLOP/s are dense ones in bf16 with fp32 sums: data sheets often print
twice as much, with sparsity.
"""

import re
from dataclasses import dataclass

from zonos2_triton.bench.cli_choices import chosen
from zonos2_triton.bench.specs.roofline import Roof


@dataclass(frozen=True)
class Card:
    """A kind of GPU."""

    name: str
    pattern: str  # of all names that torch may give it
    arch: str
    memory_gb: float
    gb_per_s: float
    tflop_per_s: float | None  # None: its maker does not say
    source: str

    @property
    def roof(self) -> Roof:
        """Of the data sheet."""
        return Roof(self.gb_per_s, self.tflop_per_s)


_HOPPER, _ADA = "NVIDIA H100 architecture white paper", "NVIDIA Ada GPU architecture white paper"
_AMPERE, _GA102 = "NVIDIA A100 architecture white paper", "NVIDIA Ampere GA102 architecture white paper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture white paper"
_PRO = "NVIDIA RTX Blackwell PRO architecture white paper"
_CDNA = "AMD Instinct {} data sheet"

CARDS = (
    Card("h200", r"NVIDIA H200", "sm_90", 141, 4800, 989.5, "NVIDIA H200 data sheet"),
    Card("h200-nvl", r"NVIDIA H200 NVL", "sm_90", 141, 4800, 835.5, "NVIDIA H200 data sheet"),
    Card("h100", r"NVIDIA H100 80GB HBM3", "sm_90", 80, 3350, 989.4, f"NVIDIA H100 data sheet; {_HOPPER}"),
    Card("h100-pcie", r"NVIDIA H100 PCIe", "sm_90", 80, 2000, 756, f"NVIDIA H100 PCIe product brief; {_HOPPER}"),
    Card("h100-nvl", r"NVIDIA H100 NVL", "sm_90", 94, 3900, 835.5, "NVIDIA H100 data sheet"),
    Card("gh200", r"NVIDIA GH200 480GB", "sm_90", 96, 4000, 989.5, "NVIDIA GH200 data sheet, 96 GB of HBM3"),
    Card("b200", r"NVIDIA B200", "sm_100", 180, 8000, 2250, "NVIDIA DGX B200 data sheet, an eighth"),
    Card("gb200", r"NVIDIA GB200", "sm_100", 186, 8000, 2500, "NVIDIA GB200 NVL72 data sheet, a 72nd"),
    Card("a100", r"(NVIDIA )?A100-SXM4-80GB", "sm_80", 80, 2039, 312, "NVIDIA A100 data sheet"),
    Card("a100-pcie", r"(NVIDIA )?A100 80GB PCIe", "sm_80", 80, 1935, 312, "NVIDIA A100 data sheet"),
    Card("a100-40gb", r"(NVIDIA )?A100-(SXM4|PCIE)-40GB", "sm_80", 40, 1555, 312, _AMPERE),
    Card("l40s", r"NVIDIA L40S", "sm_89", 48, 864, 362.05, "NVIDIA L40S data sheet"),
    Card("l40", r"NVIDIA L40", "sm_89", 48, 864, 181.05, "NVIDIA L40 data sheet"),
    Card("l4", r"NVIDIA L4", "sm_89", 24, 300, 121, "NVIDIA L4 data sheet"),
    Card("a10", r"NVIDIA A10", "sm_86", 24, 600, 125, "NVIDIA A10 data sheet"),
    Card("a10g", r"NVIDIA A10G", "sm_86", 24, 600, 70, "NVIDIA A10G data sheet"),
    Card("a40", r"NVIDIA A40", "sm_86", 48, 696, 149.7, "NVIDIA A40 data sheet"),
    Card("rtx-a6000", r"NVIDIA RTX A6000", "sm_86", 48, 768, 154.8, _GA102),
    Card("rtx-6000-ada", r"NVIDIA RTX 6000 Ada Generation", "sm_89", 48, 960, 364.2, _ADA),
    Card("rtx3090", r"NVIDIA GeForce RTX 3090", "sm_86", 24, 936, 71, _GA102),
    Card("rtx4090", r"NVIDIA GeForce RTX 4090", "sm_89", 24, 1008, 165.2, _ADA),
    Card("rtx5090", r"NVIDIA GeForce RTX 5090", "sm_120", 32, 1792, 209.5, _BLACKWELL),
    Card("rtx-pro-6000", r"NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "sm_120", 96, 1792, 503.8, _PRO),
    Card("rtx-pro-6000-max-q", r"NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "sm_120", 96, 1792, 438.9,
         _PRO),
    Card("rtx-pro-6000-server", r"NVIDIA RTX PRO 6000 Blackwell Server Edition", "sm_120", 96, 1597, None,
         "NVIDIA RTX PRO 6000 Blackwell Server Edition data sheet"),
    Card("mi300x", r"AMD Instinct MI300X( OAM| VF)?", "gfx942", 192, 5300, 1307.4, _CDNA.format("MI300X")),
    Card("mi325x", r"AMD Instinct MI325X( OAM| VF)?", "gfx942", 256, 6000, 1307.4, _CDNA.format("MI325X")),
    Card("mi350x", r"AMD Instinct MI350X( OAM| VF)?", "gfx950", 288, 8000, 2306.9, _CDNA.format("MI350X")),
    Card("mi355x", r"AMD Instinct MI355X( OAM| VF)?", "gfx950", 288, 8000, 2516.6, _CDNA.format("MI355X")),
)  # fmt: skip


def card(name: str) -> Card:
    """By its name here, however it is spaced, or by torch's name for it. ValueError: an unknown one."""
    known = {_key(card.name): card for card in CARDS}
    if found := known.get(_key(name)) or recognised(name):
        return found
    chosen("the card", [name], [card.name for card in CARDS])
    raise AssertionError  # a name of the table is known


def recognised(device_name: str) -> Card | None:
    """The card that torch calls so. A part of one, or a laptop's, is none."""
    return next((card for card in CARDS if re.fullmatch(card.pattern, device_name)), None)


def _key(name: str) -> str:
    """A name without its maker and what people write between its parts."""
    makers = ("nvidia", "geforce", "amd", "instinct")
    return "".join(word for word in re.split(r"[^a-z0-9]+", name.lower()) if word not in makers)
