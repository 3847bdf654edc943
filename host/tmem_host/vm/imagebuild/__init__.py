# SPDX-License-Identifier: Apache-2.0
"""Builds guest kernels, initramfs and root disks out of the distribution's packages; nothing is installed."""
