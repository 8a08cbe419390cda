"""The roof of a step: what is read from a compiled program and from the compiler's bundles."""

from pathlib import Path

import pytest

from flatten_jax.bench import bundles
from flatten_jax.bench.hlo import Program, arrays
from flatten_jax.bench.plan import plan
from flatten_jax.bench.roof import CHIPS, Chip, Part, operation, roof, rows
from flatten_jax.cli.config_file import read_config

# What libtpu 0.0.42 made for a v5e, but for its remarks, of tanh(x @ w) in a scan over three w, (65536, 200) in
# bfloat16, and of b.at[1].set(2 * b[0]), (4, 65536, 128) in float32.
RECORDED = (Path(__file__).parent / "step_v5e.hlo").read_text()
TILED = 65536 * 200 * 2  # bytes of x: the tokens are in the lanes, so nothing is filled up
UPDATED = 65536 * 128 * 4

# Of the same, most bundles left out.
BUNDLES = """
= control target key start
LB: loop body
= control target key end

     0   :  { %3 = vsyncpa [#allocation1], 0  ;;  %s9_s0 = inlined_call_operand.hbm [shape: f32[4,65536,128]] }
   0x1   :  { %s9489_s10 = smov 0 /* copy for cssa */ } /* End region 1861 */
   0x2 LB: > { %s7533_s11 = sadd.s32 4294967295, %s9465_s10 /* iteration index, stage = 1 */ }
   0x3   : > { %71 = sbr.rel (%p68_p3) target = $region20 }
   0x4   : >> { %7469 = dma.vmem_to_hbm [thread:$0]  (%p11395_p13), /*vmem=*/%s11405_s22 /*
iteration_bounds: (1, 9, 1)
strides: (1, 911, 1) */ }
   0x5 PF: > { %p9_p13 = scmp.ge.s32.totalorder %s11_s10, 11 /* loop exit test */ }
   0x6   :  { %10 = sbr.rel (!%p8_p13) target = $region1866 }
"""


def test_bytes_are_those_of_main_memory_with_tiles_filled_up():
    def sizes(text):
        return [(array.bytes, array.in_memory) for array in arrays(text)]

    assert sizes("bf16[3,200,200]{2,1,0:T(8,128)(2,1)}") == [(3 * 200 * 256 * 2, True)]
    assert sizes("(f32[100]{0:T(128)S(1)}, /*index=1*/pred[], token[])") == [(512, False), (1, True)]
    assert sizes("f32[8,3]{1,0}") == [(96, True)]  # a GPU's


def test_program_reads_slices_updates_in_place_and_turns_loops():
    moved = {step.instruction.name: (step.times, step.bytes) for step in Program(RECORDED).steps()}
    assert moved["copy.12"] == (1, 8 * UPDATED)
    assert moved["multiply_dynamic-update-slice_fusion"] == (1, UPDATED)  # it reads what slice-done.4 brought
    assert moved["slice-done.4"] == (1, UPDATED)
    assert sum(moved[f"slice-done{i}"][1] for i in ("", ".1", ".2", ".3")) == TILED
    assert moved["convolution_tanh_fusion.2"] == (3, 200 * 256 * 2 + 4)  # one w of three, and the counter
    assert moved["copy-start"] == (1, 0) and moved["copy-done"] == (1, TILED)
    with pytest.raises(ValueError, match="no ENTRY"):
        Program("HloModule nothing")


def test_fusion_with_several_results_writes_what_each_changes():
    """What a loop over blocks keeps: one row of a stack of twelve, in place, beside an ordinary result."""
    text = """
%fused (stack: bf16[12,8,128], x: bf16[1,8,128]) -> (bf16[12,8,128], f32[8,128]) {
  %stack = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %row = s32[] constant(3)
  %update = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%stack, %x, %row, %row, %row)
  %same = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} bitcast(%update)
  %wide = f32[8,128]{1,0:T(8,128)} convert(%x)
  ROOT %both = (bf16[12,8,128]{2,1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)}) tuple(%same, %wide)
}

ENTRY %main (stack: bf16[12,8,128], x: bf16[1,8,128]) -> (bf16[12,8,128], f32[8,128]) {
  %stack = bf16[12,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[1,8,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %f = (bf16[12,8,128]{2,1,0:T(8,128)(2,1)}, f32[8,128]{1,0:T(8,128)}) fusion(%stack, %x), kind=kLoop, calls=%fused
}
"""
    row = 8 * 128
    assert sum(step.bytes for step in Program(text).steps()) == 2 * row + 2 * row + 4 * row  # x, its row, in float32


def test_fusion_whose_one_operation_has_several_results_writes_all():
    text = """
%fused (x: f32[8,128]) -> (f32[8], s32[8]) {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %both = (f32[8]{0:T(128)}, s32[8]{0:T(128)}) reduce(%x), dimensions={1}
}

ENTRY %main (x: f32[8,128]) -> (f32[8], s32[8]) {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %f = (f32[8]{0:T(128)}, s32[8]{0:T(128)}) fusion(%x), kind=kLoop, calls=%fused
}
"""
    assert sum(step.bytes for step in Program(text).steps()) == 4 * (8 * 128 + 128 + 128)


def test_workspace_of_a_library_is_no_traffic():
    """XLA's program of a product on an H100: its operands and its result alone, 6.6 MB and not 40."""
    text = """
ENTRY %main (a: bf16[4096,256], b: bf16[256,512]) -> bf16[4096,512] {
  %a = bf16[4096,256]{1,0} parameter(0)
  %b = bf16[256,512]{1,0} parameter(1)
  %product = (bf16[4096,512]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul"
  ROOT %result = bf16[4096,512]{1,0} get-tuple-element(%product), index=0
}
"""
    assert sum(step.bytes for step in Program(text).steps()) == 2 * (4096 * 256 + 256 * 512 + 4096 * 512)


def test_roof_takes_the_longer_of_schedule_and_bytes_and_hides_copies():
    chip = Chip(bandwidth=1e9, clock=1e9)
    program, cycles = Program(RECORDED), {"convolution_tanh_fusion.2": 10**6, "copy.12": 10}
    parts = roof(program, cycles, chip)
    assert list(parts) == ["optimizer", "mlp", "loss and others"]
    assert parts["optimizer"].seconds == pytest.approx(10 * UPDATED / 1e9)
    assert parts["mlp"].compute == pytest.approx(3e-3)
    assert parts["mlp"].seconds == pytest.approx(3e-3 + TILED / 1e9, rel=1e-4)
    assert parts["loss and others"].seconds == pytest.approx(TILED / 1e9)  # x, which has no operation of its own
    assert parts["optimizer"].cycles == 608198 + 153600
    assert parts["mlp"].cycles == 3 * (288264 + 130976)
    # While this one computes for a second, nothing else reads the memory, and x is on its way.
    beside = roof(program, cycles | {"multiply_dynamic-update-slice_fusion": 10**9}, chip)
    assert beside["loss and others"].seconds == pytest.approx(0, abs=1e-6)
    assert beside["optimizer"].seconds == pytest.approx(9 * UPDATED / 1e9 + 1)
    assert roof(program, cycles, CHIPS["h100"])["mlp"].compute == 0  # bytes alone


def test_table_has_the_sum_last():
    part = Part(0.004, 0.003, 0.002, 10**9, 2 * 10**6)
    assert rows({"mlp": part, "norm": part})[1:] == [
        "| norm | 4.00 | 3.00 | 2.00 | 1.00 | 2.0 |",
        "| **all: the roof** | 8.00 | 6.00 | 4.00 | 2.00 | 4.0 |",
    ]


@pytest.mark.parametrize(
    "op_name, expected",
    [
        ("jit(step)/jvp(PVT)/PVT.blocks/block1_0/mlp/fc1/jit(affine)/dot_general", "mlp"),
        ("jit(step)/transpose(jvp(PVT))/block1_0/mlp/dwconv/dwconv/jit(_convolution)/add", "depthwise"),
        ("jit(step)/jvp(PVT)/block1_0/attn/q/jit(affine)/dot_general", "attention: projections"),
        ("jit(step)/transpose(jvp(CSwin))/stage1_0/qkv/jit(affine)/dot_general", "attention: projections"),
        ("jit(step)/jvp(PVT)/block1_0/attn/Focused_0/jit(_map)/mul", "attention: map"),
        ("jit(step)/jvp(PVT)/block1_0/attn/Focused_0/Focused_0.local_branch/dwc/add", "depthwise"),
        ("jit(step)/transpose(jvp(PVT))/block1_0/attn/Focused_0/bhnd,bhd->bhn/dot_general", "attention: the rest"),
        ("old.params['block1_0']['attn']['kv']['kernel']", "attention: projections"),
        ("jit(step)/jvp(PVT)/patch_embed1/norm/jit(layer_norm)/sub", "norm"),
        ("jit(step)/jvp(PVT)/patch_embed1/proj/jit(strided_conv)/conv", "patch embedding"),
        ("jit(step)/jvp(PVT)/block1_0/add", "rest of the model"),
        ("jit(step)/inputs/jit(_uniform)/add", "inputs"),
        ("jit(step)/optimizer/mul", "optimizer"),
        ("jit(step)/jvp()/reduce_sum", "loss and others"),
    ],
)
def test_operations_are_known_by_their_path(op_name, expected):
    assert operation(op_name) == expected


def test_bundles_of_a_loop_count_as_often_as_it_turns():
    assert bundles.scheduled(BUNDLES) == 2 + 4 * 9 + 1
    assert bundles.scheduled(BUNDLES.replace("iteration_bounds", "")) == 2 + 4 * 11 + 1


def test_dump_is_read_once_and_an_empty_one_is_refused(tmp_path):
    (tmp_path / "17-fusion.1-01-final_bundles.txt").write_text(BUNDLES)
    (tmp_path / "17-fusion.1-00-schedule-analysis_final_bundles.txt").write_text("Schedule analysis:")
    same = "key:<top-inlining-caller>\nordinal:0\nequivalent_hlos[size=0]:\n"
    same += "key:fusion.1\nordinal:3\nequivalent_hlos[size=2]:\n  fusion.1\n  fusion.7\n"
    (tmp_path / "17-TLP-00-deduplication-map.txt").write_text(same)
    assert bundles.collect(tmp_path) == {"fusion.1": 39, "fusion.7": 39}
    with pytest.raises(ValueError, match="no bundles"):
        bundles.collect(tmp_path)


def test_dump_keeps_what_libtpu_was_told_before(monkeypatch):
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_something=1")
    folder = bundles.dump_to()
    said = bundles.os.environ["LIBTPU_INIT_ARGS"]
    assert said.startswith(f"--xla_tpu_something=1 --xla_jf_dump_to={folder.name} ")


def test_roof_is_refused_for_what_has_none(monkeypatch, tmp_path):
    monkeypatch.chdir(Path(__file__).parents[2])
    config = read_config("configs/flatten_deit_t.py:smoke", [])
    for topology, quick in (("cpu:1", False), ("v5e:2x2", True)):
        with pytest.raises(ValueError, match="there is a roof of whole plans for v4, v5e, v5p"):
            plan(config, topology, quick, dump=tmp_path)
