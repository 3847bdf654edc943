# SPDX-License-Identifier: Apache-2.0
"""Turns results.json files into one self-contained HTML page. See `page`."""
