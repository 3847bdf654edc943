# SPDX-License-Identifier: Apache-2.0
"""Builds guest/module for the guests' kernels, out of tree, cached by content; nothing is installed."""
