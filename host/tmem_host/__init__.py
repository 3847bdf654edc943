# SPDX-License-Identifier: Apache-2.0
"""Transcendent memory for KVM: the control plane, the benches and the command line.

Page bytes never pass through this package: they go from the guest's memory to the store inside ``_core`` (Rust).
"""

__version__ = "0.1.0"
