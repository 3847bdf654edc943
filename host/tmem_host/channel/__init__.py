# SPDX-License-Identifier: Apache-2.0
"""Channels as the control plane sees them: the ABI, frames on a stream, the reference implementation."""
