"""Without the extension there are no kernels to test: what runs then is PyTorch, which has tests of its own."""

from leadline.ops.cpu import native

collect_ignore = [] if native.extension() else ["test_kernels.py", "test_model.py", "test_company.py"]
