"""Compiles every shipped configuration for both vendors' cards, which needs neither of them."""

import functools
import re
import subprocess
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels import AttentionMask  # noqa: E402
from kernels.hstu.backward import hstu_attention_dkdv_kernel, hstu_attention_dq_kernel  # noqa: E402
from kernels.hstu.forward import hstu_attention_fwd_kernel  # noqa: E402
from kernels.hstu.function import constants  # noqa: E402
from kernels.hstu.tiles import choose_tiles  # noqa: E402

KERNELS = {
    "forward": hstu_attention_fwd_kernel,
    "dq": hstu_attention_dq_kernel,
    "dkdv": hstu_attention_dkdv_kernel,
}
TARGETS = {"cuda": GPUTarget("cuda", 90, 32), "hip": GPUTarget("hip", "gfx942", 64)}
SHARED_BYTES = {"cuda": 227 * 1024, "hip": 64 * 1024}
CASES = {
    "band 128": (128, AttentionMask(256, 256), torch.bfloat16),
    "full 128": (128, AttentionMask(1 << 20, 0), torch.bfloat16),
    "band 256": (256, AttentionMask(256, 256, "keys"), torch.bfloat16),
    "fp32 64": (64, AttentionMask(256, 256), torch.float32),
}
# The widest forward tile, the fastest on the card in spite of it, stands just below.
SPILLED_BYTES = 96
ELEMENT = {torch.bfloat16: "bf16", torch.float32: "fp32"}


def source(kernel, fixed, element, blocks):
    """The kernel with its arguments' types; pointers and token strides divide by 16, as a caller's usually do."""
    signature, attributes = {}, {}
    for position, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name] = "constexpr"
        elif name.endswith("_source") and fixed["TMA"]:
            rows = blocks[name]
            signature[name] = f"tensordesc<{element}[{rows}, {fixed['BLOCK_A']}]>"
            continue
        elif name in ("items_ptr", "counts_ptr", "sums_ptr"):
            signature[name] = "*i32"
        elif name == "parts_ptr":
            signature[name] = "*fp32"
        elif name.endswith(("_ptr", "_source")):
            signature[name] = f"*{element}"
        else:
            signature[name] = "fp32" if name.endswith(("alpha", "scale")) else "i32"
        if name.endswith(("_ptr", "_source")) or name.startswith("stride"):
            attributes[(position,)] = [["tt.divisibility", 16]]
    return ASTSource(kernel, signature, fixed, attributes)


def spilled_bytes(compiled, backend, directory):
    if backend == "hip":
        return 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", compiled.asm["amdgcn"])[1])
    ptx = directory / "kernel.ptx"
    ptx.write_text(compiled.asm["ptx"])
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    command = [ptxas, "-v", "--gpu-name=sm_90a", "-o", directory / "kernel.cubin", ptx]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return int(re.search(r"(\d+) bytes spill stores", report)[1])


@functools.cache
def tile_set(case, backend):
    dim, mask, dtype = CASES[case]
    return choose_tiles(dim=dim, dtype=dtype, local_window=mask.local_window, backend=backend)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("backend", "case"),
    [(backend, case) for backend in TARGETS for case in CASES if (backend, case) != ("hip", "full 128")],
)
def test_kernel_compiles_within_the_cards_resources(backend, case, kernel, tmp_path, record_property):
    dim, mask, dtype = CASES[case]
    settings = tile_set(case, backend)
    tiles = getattr(settings, kernel)
    fixed = constants(num_heads=4, qk_dim=dim, v_dim=dim, mask=mask, dtype=dtype, backend=backend)
    fixed |= {"BLOCK_M": tiles.block_m, "BLOCK_N": tiles.block_n, "STAGES": tiles.stages, "TMA": settings.tma}
    if kernel == "forward":
        fixed["TWO_LOOPS"] = tiles.two_loops
    blocks = {f"{name}_source": tiles.block_n if name in "kv" else tiles.block_m for name in ("q", "k", "v", "do")}
    compiled = triton.compile(
        source(KERNELS[kernel], fixed, ELEMENT[dtype], blocks),
        target=TARGETS[backend],
        options={"num_warps": tiles.warps},
    )
    spilled = spilled_bytes(compiled, backend, tmp_path)
    record_property("shared", compiled.metadata.shared)
    record_property("spilled", spilled)
    print(f"{backend} {case} {kernel}: {compiled.metadata.shared} bytes shared, {spilled} bytes a thread spilled")
    assert compiled.metadata.shared <= SHARED_BYTES[backend]
    assert spilled <= SPILLED_BYTES
