"""Without the extension there are no kernels to test: what runs then is PyTorch, which has tests of its own."""

from leadline.ops.cpu import native, training

NEED_KERNELS = ["test_cases.py", "test_company.py", "test_footprint.py", "test_kernels.py", "test_model.py"]
NEED_KERNELS += ["test_v2_lite.py"]
collect_ignore = [] if native.extension() else NEED_KERNELS


def has_tiles() -> bool:
    """Whether AMX's kernels were built and this machine has AVX-512, which they are for all that is not a tile."""
    emulate = getattr(native.extension(), "emulate_amx", None)
    if emulate is None:
        return False
    emulate(True)
    found = "amx" in native.instruction_sets()
    emulate(False)
    return found


collect_ignore += [] if has_tiles() else ["test_amx.py"]
collect_ignore += [] if training.available() else ["test_training.py"]
