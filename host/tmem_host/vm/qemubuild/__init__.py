# SPDX-License-Identifier: Apache-2.0
"""Builds the QEMU of qemu-patches/: the distribution's source package, the series on top, cached by content."""
