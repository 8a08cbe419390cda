"""NVIDIA GPUs that are not there, described to XLA's compiler: it needs no GPU and no driver to compile for one."""

from dataclasses import dataclass

import jax

# Without a GPU no kernels can be tried out: products are left to cuBLAS, since the tiles that XLA's own kernels have by
# default do not fit all of them, which is an error.
COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}


@dataclass(frozen=True)
class GPU:
    """What XLA chooses kernels by, from NVIDIA's data sheets; sizes in bytes, bandwidth in bytes a second."""

    name: str
    capability: int
    cores: int
    float32_units: int
    clock_ghz: float
    memory: int
    bandwidth: int
    cache: int
    shared_memory: int


GPUS = {
    "a100": GPU("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41, 85100068864, 2039040000000, 40 << 20, 164 << 10),
    "h100": GPU("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98, 84942979072, 3352320000000, 50 << 20, 228 << 10),
    "h200": GPU("NVIDIA H200 141GB HBM3e", 9, 132, 128, 1.98, 151397597184, 4800000000000, 50 << 20, 228 << 10),
}


def describe(name: str, count: int) -> list[jax.Device]:
    """`count` GPUs of one machine to compile for; `name` is a key of GPUS.

    `jax_platforms` has to be "cpu": else JAX's plugin looks for a GPU as it starts, and without one gives up.

    The form is XLA's GpuTargetConfigProto (openxla/xla, xla/stream_executor/device_description.proto).

    Raises:
        RuntimeError: of any kind, where JAX's CUDA plugin is not installed.
    """
    from jax.experimental import topologies

    gpu = GPUS[name]
    device = f"""
        threads_per_warp: 32
        threads_per_block_limit: 1024
        threads_per_core_limit: 2048
        registers_per_block_limit: 65536
        registers_per_core_limit: 65536
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        shared_memory_per_block: {48 << 10}
        shared_memory_per_block_optin: {gpu.shared_memory - (1 << 10)}
        shared_memory_per_core: {gpu.shared_memory}
        core_count: {gpu.cores}
        fpus_per_core: {gpu.float32_units}
        clock_rate_ghz: {gpu.clock_ghz}
        device_memory_size: {gpu.memory}
        memory_bandwidth: {gpu.bandwidth}
        l2_cache_size: {gpu.cache}
        cuda_compute_capability {{ major: {gpu.capability} }}
    """
    libraries = "dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 8 }"
    config = f'gpu_device_info {{ {device} }} platform_name: "CUDA" {libraries} device_description_str: "{gpu.name}"'
    # Slices x machines of a slice x GPUs of a machine.
    return topologies.get_topology_desc(name, "cuda", target_config=config, topology=f"1x1x{count}").devices
